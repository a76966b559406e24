//! Fetching the demo's files when something is in the way: no apt, no network, a full disk, a broken cache, an
//! impatient user. Whatever happens, the cache holds whole entries and nothing else.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use e2e::cache;
use e2e::program::{Ended, Run};
use e2e::skipped;
use rustix::process::Signal;
use tempfile::TempDir;

const KERNEL: &str = "linux-image-cloud-amd64";
const BUSYBOX: &str = "busybox-static";

/// A folder for a cache and for what a test gives apt to read.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a directory");
        fs::create_dir(folder.path().join("cache")).expect("created");
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn cache(&self) -> PathBuf {
        self.path("cache")
    }

    /// apt's configuration with these lines and nothing of the host's sources.
    fn apt_with_sources(&self, sources: &str, more: &str) -> PathBuf {
        fs::write(self.path("sources.list"), sources).expect("written");
        fs::create_dir_all(self.path("parts")).expect("created");
        let text = format!(
            "Dir::Etc::SourceList \"{}\";\nDir::Etc::SourceParts \"{}\";\n{more}",
            self.path("sources.list").display(),
            self.path("parts").display()
        );
        self.apt(&text)
    }

    fn apt(&self, text: &str) -> PathBuf {
        let path = self.path("apt.conf");
        fs::write(&path, text).expect("written");
        path
    }

    /// A run that needs the files and starts no guest.
    fn run(&self) -> Run {
        cache::write_images(2, &self.path("images")).cache(&self.cache())
    }
}

/// A port of this machine where nobody listens.
fn closed_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound").port()
}

/// apt's settings for a network whose proxy is not there.
fn no_network() -> String {
    let port = closed_port();
    format!(
        "Acquire::http::Proxy \"http://127.0.0.1:{port}\";\n\
         Acquire::https::Proxy \"http://127.0.0.1:{port}\";\n"
    )
}

fn has_apt() -> bool {
    let found = Run::program("apt-get").args(["--version"]).try_start();
    found.is_ok_and(|run| run.end().code() == 0)
}

/// Skips the test on a machine without apt.
macro_rules! need_apt {
    () => {
        if !has_apt() {
            skipped("this machine has no apt");
            return;
        }
    };
}

fn assert_tells(ended: &Ended, parts: &[&str]) {
    let line = ended.failure();
    for part in parts {
        assert!(line.contains(part), "no {part:?} in: {line}");
    }
}

#[test]
fn no_apt() {
    let place = Place::new();
    let ended = place.run().env("PATH", place.path("nothing")).end();
    assert_tells(
        &ended,
        &[
            "cannot fetch ",
            "no apt; give --kernel, --modules and --busybox",
        ],
    );
    cache::assert_holds(&place.cache(), &[]);
}

#[test]
fn the_demo_itself_fails_in_the_same_way() {
    let place = Place::new();
    let ended = Run::nestling(["demo", "--engine", "soft", "--format", "json"])
        .cache(&place.cache())
        .env("PATH", place.path("nothing"))
        .end();
    assert_tells(&ended, &["no apt"]);
    assert!(ended.output.is_empty(), "{}", ended.text());
}

#[test]
fn sources_that_cannot_be_reached() {
    need_apt!();
    let place = Place::new();
    let source = format!(
        "deb http://127.0.0.1:{}/debian bookworm main\n",
        closed_port()
    );
    let config = place.apt_with_sources(&source, "");
    let ended = place.run().env("APT_CONFIG", config).end();
    assert_tells(
        &ended,
        &[
            "cannot fetch the package ",
            ": no network: ",
            "; connect to the network",
        ],
    );
    cache::assert_holds(&place.cache(), &[]);
}

#[test]
fn the_network_is_gone() {
    need_apt!();
    let place = Place::new();
    let config = place.apt(&no_network());
    let ended = place.run().env("APT_CONFIG", config).end();
    assert_tells(
        &ended,
        &["cannot fetch the package ", ": no network: ", "--busybox"],
    );
    cache::assert_holds(&place.cache(), &[]);
}

#[test]
fn sources_without_the_packages() {
    need_apt!();
    let place = Place::new();
    fs::create_dir(place.path("repository")).expect("created");
    fs::write(place.path("repository/Packages"), "").expect("written");
    let source = format!(
        "deb [trusted=yes] file:{} ./\n",
        place.path("repository").display()
    );
    let config = place.apt_with_sources(&source, "");
    let ended = place.run().env("APT_CONFIG", config).end();
    assert_tells(
        &ended,
        &["the apt sources of this host do not have it; add a Debian source"],
    );
    cache::assert_holds(&place.cache(), &[]);
}

/// A repository whose busybox is `content` and whose list claims `claimed` as its SHA-256.
fn repository(place: &Place, content: &[u8], claimed: Option<&str>) -> PathBuf {
    let folder = place.path("repository");
    fs::create_dir(&folder).expect("created");
    fs::write(folder.join("busybox.deb"), content).expect("written");
    let sum = Run::program("sha256sum")
        .args([folder.join("busybox.deb")])
        .end();
    let text = sum.text();
    let found = text.split(' ').next().expect("a checksum");
    let list = format!(
        "Package: {BUSYBOX}\nVersion: 1\nArchitecture: amd64\nFilename: ./busybox.deb\n\
         Size: {}\nSHA256: {}\n\n",
        content.len(),
        claimed.unwrap_or(found)
    );
    fs::write(folder.join("Packages"), list).expect("written");
    let source = format!("deb [trusted=yes] copy:{} ./\n", folder.display());
    place.apt_with_sources(&source, "")
}

#[test]
fn a_package_that_is_not_what_the_list_says() {
    need_apt!();
    let place = Place::new();
    let config = repository(&place, b"something else", Some(&"ab".repeat(32)));
    let ended = place.run().env("APT_CONFIG", config).end();
    assert_tells(&ended, &["busybox-static"]);
    cache::assert_holds(&place.cache(), &[]);
}

#[test]
fn a_package_that_is_none() {
    need_apt!();
    let place = Place::new();
    let config = repository(&place, &[0xa5; 5_000], None);
    let ended = place.run().env("APT_CONFIG", config).end();
    assert_tells(&ended, &["cannot unpack "]);
    cache::assert_holds(&place.cache(), &[]);
}

#[test]
fn a_user_who_will_not_wait() {
    need_apt!();
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = silent.local_addr().expect("bound").port();
    let place = Place::new();
    let source = format!("deb http://127.0.0.1:{port}/debian bookworm main\n");
    let config = place.apt_with_sources(&source, "");
    for signal in [Signal::INT, Signal::TERM] {
        let running = place.run().env("APT_CONFIG", &config).start();
        // apt has come to the server, which says nothing.
        let connection = silent.accept().expect("apt connects");
        running.signal(signal);
        let ended = running.end();
        drop(connection);
        assert!(
            ended.messages.contains("stopped while fetching: a signal"),
            "{}",
            ended.messages
        );
        assert_ne!(ended.code(), 0);
        cache::assert_holds(&place.cache(), &[]);
    }
}

#[test]
fn what_a_killed_run_left_is_cleared() {
    need_apt!();
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = silent.local_addr().expect("bound").port();
    let place = Place::new();
    let source = format!("deb http://127.0.0.1:{port}/debian bookworm main\n");
    let config = place.apt_with_sources(&source, "");
    let running = place.run().env("APT_CONFIG", &config).start();
    let connection = silent.accept().expect("apt connects");
    running.signal(Signal::KILL);
    assert_eq!(running.end().code(), 137);
    drop((connection, silent));
    let config = place.apt(&no_network());
    let ended = place.run().env("APT_CONFIG", config).end();
    assert_tells(&ended, &["no network"]);
    cache::assert_holds(&place.cache(), &[]);
}

/// Changes one bit of the last byte; that of a manifest is the brace that closes it.
fn spoil(path: &Path) {
    let mut content = fs::read(path).expect("readable");
    let last = content.len() - 1;
    content[last] ^= 0x10;
    fs::write(path, content).expect("written");
}

#[test]
fn a_broken_entry_is_fetched_again() {
    let place = Place::new();
    let copy = cache::copy();
    spoil(&copy.path().join(BUSYBOX).join("busybox"));
    let ended = place.run().cache(copy.path()).end();
    ended.expect_code(0);
    assert!(
        ended.messages.contains(
            "nestling: the cache's busybox-static is broken (busybox: its checksum is wrong); \
             fetching it again\n"
        ),
        "{}",
        ended.messages
    );
    cache::assert_holds(copy.path(), &[BUSYBOX, KERNEL]);
    let whole = fs::read(cache::shared().join(BUSYBOX).join("busybox")).expect("readable");
    let again = fs::read(copy.path().join(BUSYBOX).join("busybox")).expect("readable");
    assert!(whole == again, "the same file as before");
    let ended = place.run().cache(copy.path()).end();
    assert_eq!(ended.expect_code(0).messages, "");
}

#[test]
fn a_broken_entry_without_network_is_told() {
    need_apt!();
    let place = Place::new();
    let config = place.apt(&no_network());
    for (entry, file) in [
        (KERNEL, "vmlinuz"),
        (KERNEL, "kvm.ko"),
        (BUSYBOX, "manifest.json"),
    ] {
        let copy = cache::copy();
        spoil(&copy.path().join(entry).join(file));
        let run = place.run().cache(copy.path());
        let ended = run.env("APT_CONFIG", &config).end();
        assert_tells(&ended, &["cannot fetch the package ", "no network"]);
        let told = format!("nestling: the cache's {entry} is broken ({file}: ");
        assert!(ended.messages.contains(&told), "{}", ended.messages);
        let mut left = cache::names(copy.path());
        left.retain(|name| name != "lock");
        assert_eq!(left, [BUSYBOX, KERNEL]);
    }
}

#[test]
fn a_whole_cache_needs_neither_apt_nor_network() {
    let place = Place::new();
    let ended = place
        .run()
        .cache(cache::shared())
        .env("PATH", place.path("nothing"))
        .end();
    assert_eq!(ended.expect_code(0).messages, "");
}

#[test]
fn a_second_run_waits_for_the_first() {
    need_apt!();
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = silent.local_addr().expect("bound").port();
    let place = Place::new();
    let source = format!("deb http://127.0.0.1:{port}/debian bookworm main\n");
    let config = place.apt_with_sources(&source, "");
    let first = place.run().env("APT_CONFIG", &config).start();
    let connection = silent.accept().expect("apt connects");
    let mut second = place.run().env("PATH", place.path("nothing")).start();
    // The second one waits for the lock before it finds out that it has no apt.
    second.await_message("waiting for another nestling that fills the cache\n");
    first.signal(Signal::TERM);
    let first = first.end();
    drop(connection);
    assert_ne!(first.code(), 0);
    assert_tells(&second.end(), &["no apt"]);
}

#[test]
fn a_cache_that_cannot_be_a_folder() {
    let place = Place::new();
    fs::write(place.path("file"), "").expect("written");
    symlink("/nonexistent/cache", place.path("dangling")).expect("linked");
    for cache in [
        place.path("file"),
        place.path("file/cache"),
        place.path("dangling"),
        PathBuf::from("/proc/nestling"),
    ] {
        let ended = place.run().cache(&cache).end();
        assert_tells(&ended, &["cannot write "]);
    }
}

/// Runs `script` where /mnt is a disk of its own of `size`, gone when the script ends; `None` where this user
/// cannot have one.
fn with_disk(size: &str, script: &str, run: impl Fn(Run) -> Run) -> Option<Ended> {
    let own_root: &[&str] = if rustix::process::geteuid().is_root() {
        &["--mount"]
    } else {
        &["--user", "--map-root-user", "--mount"]
    };
    let shell = |script: &str| {
        let script = format!("mount -t tmpfs -o size={size} none /mnt && {script}");
        let unshare = Run::program("unshare").args(own_root);
        unshare.args(["--", "/bin/sh", "-c", &script, "sh"])
    };
    if shell("true")
        .try_start()
        .map_or(127, |run| run.end().code())
        != 0
    {
        skipped("this user cannot mount a small disk of its own");
        return None;
    }
    Some(run(shell(script)).end())
}

#[test]
fn a_full_disk() {
    need_apt!();
    // The package lists, the package or the finished entry does not fit, depending on the size.
    for size in ["16k", "512k", "2m", "8m"] {
        let script = r#""$@"; status=$?; ls -A /mnt >&3; exit $status"#;
        let place = Place::new();
        let list = place.path("list");
        let script = format!("exec 3>'{}'; {script}", list.display());
        let ended = with_disk(size, &script, |run| {
            run.args([e2e::program::path()])
                .args(["images", "--output"])
                .args([place.path("images")])
                .cache(Path::new("/mnt"))
        });
        let Some(ended) = ended else { return };
        println!("{size}: {}", ended.messages);
        assert_tells(
            &ended,
            &[
                "o space left on ",
                "; free some space or point NESTLING_CACHE at another disk",
            ],
        );
        let left = fs::read_to_string(&list).expect("the list was made");
        for name in left.lines() {
            assert!(["lock", BUSYBOX].contains(&name), "{size}: left {left}");
        }
    }
}
