//! What a run of an engine was made of.

use std::collections::BTreeMap;

/// Counts by name. Engines choose the names; those of several vCPUs are added up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// How often something happened, or how much of it there is.
    pub counts: BTreeMap<&'static str, u64>,
    /// Instructions, by mnemonic, that translated code had a handler do because it has no code for them; with `-miss`
    /// behind the name, because the code it has found no translation of an address, or no block.
    pub handled: BTreeMap<String, u64>,
}

impl Profile {
    /// Adds to a count.
    pub fn count(&mut self, name: &'static str, more: u64) {
        let count = self.counts.entry(name).or_default();
        *count = count.saturating_add(more);
    }

    /// Adds the counts of another vCPU.
    pub fn add(&mut self, other: &Self) {
        for (&name, &more) in &other.counts {
            self.count(name, more);
        }
        for (name, &more) in &other.handled {
            let count = self.handled.entry(name.clone()).or_default();
            *count = count.saturating_add(more);
        }
    }

    /// The mnemonics handled most often, the most frequent first.
    pub fn most_handled(&self, most: usize) -> Vec<(&str, u64)> {
        let mut all: Vec<_> = self.handled.iter().map(|(n, &c)| (n.as_str(), c)).collect();
        all.sort_by_key(|&(name, count)| (std::cmp::Reverse(count), name));
        all.truncate(most);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_vcpus_are_added_up() {
        let mut one = Profile::default();
        one.count("blocks", 3);
        one.handled.insert("DIV".into(), 1);
        one.handled.insert("RDTSC".into(), 7);
        let mut all = one.clone();
        all.add(&one);
        assert_eq!(all.counts["blocks"], 6);
        assert_eq!(all.most_handled(9), [("RDTSC", 14), ("DIV", 2)]);
        assert_eq!(all.most_handled(1), [("RDTSC", 14)]);
    }
}
