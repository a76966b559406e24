//! The line `run --stats` ends with: the figures of the run as `key=value` words, for people and programs.

use lifecycle::{Profile, Statistics};

use crate::vm::Engine;

/// The line, with the hash of the guest's memory. The speed is over the whole run, idle time included; what the engine
/// does not count is `unknown`.
pub fn line(engine: Engine, statistics: &Statistics, memory: Option<&str>) -> String {
    let Statistics {
        retired,
        wall,
        guest_time,
    } = statistics;
    let count = |number: Option<u64>| number.map_or("unknown".to_string(), |n| n.to_string());
    let a_second = retired.and_then(|retired| {
        let a_second = u128::from(retired) * 1_000_000_000 / wall.as_nanos().max(1);
        u64::try_from(a_second).ok()
    });
    format!(
        "stats engine={engine} instructions={} wall_ms={} guest_ms={} instructions_per_second={} memory={}",
        count(*retired),
        wall.as_millis(),
        guest_time.as_millis(),
        count(a_second),
        memory.unwrap_or("unknown"),
    )
}

/// More lines: what the vCPUs' work was made of, as far as the engine looks.
pub fn profile(profile: &Profile) -> Vec<String> {
    const MOST: usize = 16;
    let words = |name: &str, words: Vec<String>| format!("{name} {}", words.join(" "));
    let counts = profile.counts.iter().map(|(n, c)| format!("{n}={c}"));
    let handled = profile.most_handled(MOST);
    let handled = handled.iter().map(|(n, c)| format!("{n}={c}"));
    [
        ("profile", counts.collect::<Vec<_>>()),
        ("handled", handled.collect()),
    ]
    .into_iter()
    .filter(|(_, w)| !w.is_empty())
    .map(|(name, w)| words(name, w))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_profile_is_left_out_where_there_is_none() {
        let mut p = Profile::default();
        assert!(profile(&p).is_empty());
        p.count("blocks", 3);
        assert_eq!(profile(&p), ["profile blocks=3"]);
        p.handled.insert("DIV".into(), 2);
        assert_eq!(profile(&p), ["profile blocks=3", "handled DIV=2"]);
    }

    #[test]
    fn the_line_has_every_figure() {
        let mut statistics = Statistics {
            retired: Some(3_000_000_000),
            wall: Duration::from_millis(20_000),
            guest_time: Duration::from_millis(24_000),
        };
        assert_eq!(
            line(Engine::Soft, &statistics, Some("0f")),
            "stats engine=soft instructions=3000000000 wall_ms=20000 guest_ms=24000 \
             instructions_per_second=150000000 memory=0f"
        );
        statistics.retired = None;
        assert!(line(Engine::Kvm, &statistics, None).ends_with("_second=unknown memory=unknown"));
        statistics.retired = Some(u64::MAX);
        statistics.wall = Duration::ZERO;
        assert!(line(Engine::Soft, &statistics, None).ends_with("_second=unknown memory=unknown"));
    }
}
