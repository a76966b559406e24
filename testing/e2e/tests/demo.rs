//! The demo from its first level to its last.

use std::time::Duration;

use e2e::cache;
use e2e::program::{Ended, Run};
use serde_json::Value;

/// On a busy machine of two slow processors. A demo that hangs is ended by this, nothing else.
const PATIENCE_S: u64 = 1500;

fn demo(depth: u8, options: &[&str]) -> Ended {
    let (depth, patience) = (depth.to_string(), PATIENCE_S.to_string());
    Run::nestling(["demo", "--depth", &depth, "--timeout", &patience])
        .args(["--engine", "soft"])
        .args(options)
        .cache(cache::shared())
        .deadline(Duration::from_secs(PATIENCE_S + 60))
        .end()
}

fn assert_every_level_came_and_went(depth: u8, cpus: u8) {
    let ended = demo(depth, &["--format", "json", "--cpus", &cpus.to_string()]);
    ended.expect_code(0);
    let result = ended.json();
    println!("{}", ended.text());
    assert_eq!(result["ok"], true);
    assert_eq!(result["depth"], depth);
    assert_eq!(result["engine"]["engine"], "soft");
    assert_eq!(result["failure"], Value::Null);
    let levels = result["levels"].as_array().expect("levels");
    assert_eq!(levels.len(), usize::from(depth));
    let kernel = levels[0]["kernel"].as_str().expect("level 1 has a kernel");
    assert!(kernel.contains("cloud-amd64"), "{kernel}");
    for (number, level) in (1_u8..).zip(levels) {
        assert_eq!(level["level"], number);
        assert_eq!(level["stage"], "down", "level {number}");
        assert_eq!(level["status"], 0, "level {number}");
        assert_eq!(level["failed_step"], Value::Null, "level {number}");
        assert_eq!(level["kernel"], kernel, "level {number}");
        // Level 1 runs on us; what is below runs on the KVM of the level above.
        let hypervisor = if number == 1 {
            "NestlingNest"
        } else {
            "KVMKVMKVM"
        };
        assert_eq!(level["hypervisor"], hypervisor, "level {number}");
        assert_eq!(level["virt"], "vmx", "level {number}");
        assert_eq!(level["cpus"], cpus, "level {number}");
        let at = |key: &str| level[key].as_f64().expect("a time");
        assert!(at("up_at_seconds") <= at("down_at_seconds"));
        assert!(at("uptime_seconds") > 0.0);
    }
    for pair in levels.windows(2) {
        let [outer, inner] = pair else { continue };
        let of = |level: &Value, key: &str| level[key].as_f64().expect("a number");
        // The inner level lives inside the outer one, in its time and in its memory.
        assert!(of(outer, "up_at_seconds") <= of(inner, "up_at_seconds"));
        assert!(of(inner, "down_at_seconds") <= of(outer, "down_at_seconds"));
        assert!(of(inner, "memory_kib") < of(outer, "memory_kib"));
    }
}

#[test]
fn two_levels() {
    assert_every_level_came_and_went(2, 1);
}

#[test]
fn three_levels() {
    assert_every_level_came_and_went(3, 1);
}

#[test]
fn two_levels_of_two_processors() {
    assert_every_level_came_and_went(2, 2);
}

#[test]
fn one_level_as_a_tree() {
    let ended = demo(1, &[]);
    ended.expect_code(0);
    let text = ended.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert_eq!(lines[0], "L0 this host, engine soft: asked for");
    assert!(lines[1].starts_with("`- L1 Linux "), "{text}");
    assert!(lines[1].contains(" on NestlingNest, vmx, "), "{text}");
    assert!(lines[1].ends_with(": ok"), "{text}");
    assert!(lines[2].starts_with("took "), "{text}");
}

#[test]
fn a_demo_without_enough_time_says_how_far_it_came() {
    let ended = Run::nestling(["demo", "--timeout", "1", "--engine", "soft"])
        .args(["--format", "json"])
        .cache(cache::shared())
        .end();
    ended.expect_code(124);
    let result = ended.json();
    assert_eq!(result["ok"], false);
    assert_eq!(result["levels"][1]["stage"], "waiting");
    assert!(
        ended
            .messages
            .contains("the demo did not end in 1 s: the time was over"),
        "{}",
        ended.messages
    );
}

#[test]
fn a_demo_whose_level_fails_says_which_and_where() {
    // Without VT-x in the processor's flags KVM's module does not load.
    let ended = demo(2, &["--format", "json", "--append", "clearcpuid=vmx"]);
    ended.expect_code(1);
    let result = ended.json();
    assert_eq!(result["ok"], false);
    assert_eq!(result["levels"][0]["virt"], "none");
    assert_eq!(result["levels"][0]["failed_step"], "module-kvm-intel");
    assert!(!result["console"].as_array().expect("lines").is_empty());
    let last = ended.messages.lines().last().expect("a line");
    assert!(
        last.starts_with("nestling: the demo failed: level 1 failed in step module-kvm-intel"),
        "{last}"
    );
}
