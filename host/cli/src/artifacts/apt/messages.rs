//! What apt's messages in the C locale mean.

use crate::failure::one_line;

/// Why an apt command failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The network, or a server, cannot be reached.
    NoNetwork,
    /// The disk is full.
    DiskFull,
    /// The sources do not have the package.
    NoSuchPackage,
    /// Something else.
    Other,
}

const DISK_FULL: &[&str] = &["No space left on device", "enough free space"];
const NO_NETWORK: &[&str] = &[
    "Temporary failure resolving",
    "Could not resolve",
    "Could not connect",
    "Unable to connect",
    "Connection failed",
    "Connection timed out",
    "Connection refused",
    "Network is unreachable",
    "No route to host",
];
const NO_PACKAGE: &[&str] = &[
    "Unable to locate package",
    "No packages found",
    "Can't find a source",
    "has no available version",
];

/// Tells the trouble from apt's messages.
pub fn classify(messages: &str) -> Trouble {
    let has = |marks: &[&str]| marks.iter().any(|mark| messages.contains(mark));
    if has(DISK_FULL) {
        Trouble::DiskFull
    } else if has(NO_NETWORK) {
        Trouble::NoNetwork
    } else if has(NO_PACKAGE) {
        Trouble::NoSuchPackage
    } else {
        Trouble::Other
    }
}

/// The line of apt's messages that tells most.
pub fn telling_line(messages: &str) -> String {
    let lines = || messages.lines().filter(|line| !line.trim().is_empty());
    let names_the_network = |line: &&str| NO_NETWORK.iter().any(|mark| line.contains(mark));
    let line = lines()
        .find(names_the_network)
        .or_else(|| lines().find(|line| line.starts_with("E:")))
        .or_else(|| lines().next_back())
        .unwrap_or("it gave no reason");
    one_line(line.trim_start_matches("E:").trim_start_matches("W:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_apt_are_understood() {
        let cases = [
            (
                "E: Failed to fetch x  Temporary failure resolving 'deb.debian.org'",
                Trouble::NoNetwork,
            ),
            ("E: Unable to locate package x", Trouble::NoSuchPackage),
            (
                "E: Write error - write (28: No space left on device)",
                Trouble::DiskFull,
            ),
            ("E: The repository is not signed.", Trouble::Other),
        ];
        for (messages, trouble) in cases {
            assert_eq!(classify(messages), trouble, "{messages}");
        }
    }

    #[test]
    fn the_telling_line_is_the_first_error() {
        assert_eq!(telling_line("W: a\nE: b\nE: c\n"), "b");
        assert_eq!(telling_line("something\n\n"), "something");
        assert_eq!(telling_line(""), "it gave no reason");
        assert_eq!(
            telling_line("E: x\nW: Failed to fetch y  Could not resolve 'z'\nW: Some"),
            "Failed to fetch y  Could not resolve 'z'"
        );
    }
}
