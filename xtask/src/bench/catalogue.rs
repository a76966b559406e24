//! The parts of the benchmark, as `guestbench --list` tells them.

/// A part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartInfo {
    /// Its name.
    pub name: String,
    /// What it is about: `compute`, `program`, `kernel`, `exit` or `processors`.
    pub group: String,
    /// What one operation is.
    pub operation: String,
}

impl PartInfo {
    /// Whether a run on the host says anything about it: it depends on the processor and not on the host's kernel.
    pub fn is_native(&self) -> bool {
        matches!(self.group.as_str(), "compute" | "program" | "processors")
    }
}

/// All parts in the order they run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalogue(Vec<PartInfo>);

impl Catalogue {
    /// One part in a line: name, group, operation.
    pub fn parse(text: &str) -> Option<Self> {
        let part = |line: &str| {
            let mut words = line.splitn(3, ' ').map(String::from);
            Some(PartInfo {
                name: words.next()?,
                group: words.next()?,
                operation: words.next()?,
            })
        };
        let parts: Option<Vec<_>> = text.lines().map(part).collect();
        parts.filter(|parts| !parts.is_empty()).map(Self)
    }

    /// The parts.
    pub fn iter(&self) -> impl Iterator<Item = &PartInfo> {
        self.0.iter()
    }

    /// Those of a group.
    pub fn group<'a>(&'a self, group: &'a str) -> impl Iterator<Item = &'a PartInfo> {
        self.iter().filter(move |part| part.group == group)
    }

    /// Those that `names`, of parts and groups, choose.
    ///
    /// # Errors
    /// The name that is neither.
    pub fn chosen(&self, names: &[String]) -> Result<Self, String> {
        let is = |part: &PartInfo, name: &String| part.name == *name || part.group == *name;
        if let Some(unknown) = names.iter().find(|n| !self.iter().any(|p| is(p, n))) {
            return Err(unknown.clone());
        }
        let parts = self.iter().filter(|p| names.iter().any(|n| is(p, n)));
        Ok(Self(parts.cloned().collect()))
    }

    /// Those that `keep` says yes to.
    pub fn filtered(&self, keep: impl Fn(&PartInfo) -> bool) -> Self {
        Self(self.iter().filter(|part| keep(part)).cloned().collect())
    }

    /// The names as `guestbench --only` takes them; `None` if there are none.
    pub fn names(&self) -> Option<String> {
        let names: Vec<&str> = self.iter().map(|part| part.name.as_str()).collect();
        (!names.is_empty()).then(|| names.join(","))
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Two parts that compute and one of another group.
    pub fn sample() -> Catalogue {
        let text = "crc compute byte\nsort compute element of many\ncpuid exit CPUID\n";
        Catalogue::parse(text).expect("well formed")
    }

    #[test]
    fn a_list_is_read() {
        let catalogue = sample();
        let sort = catalogue.iter().nth(1).expect("three");
        assert_eq!(sort.operation, "element of many");
        assert!(sort.is_native());
        assert_eq!(catalogue.group("exit").count(), 1);
        for wrong in ["", "crc compute\n", "crc"] {
            assert_eq!(Catalogue::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn parts_are_chosen_by_their_names_and_groups() {
        let chosen = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
            sample().chosen(&names).map(|chosen| chosen.names())
        };
        assert_eq!(chosen(&["cpuid", "sort"]), Ok(Some("sort,cpuid".into())));
        assert_eq!(chosen(&["compute"]), Ok(Some("crc,sort".into())));
        assert_eq!(chosen(&[]), Ok(None));
        assert_eq!(chosen(&["crc", "nothing"]), Err("nothing".into()));
    }
}
