//! Exceptions.
#![no_std]
#![no_main]
use runtime::{check_eq, snippet, trap};
runtime::guest!("exceptions", run);
snippet! { t_ud2: "ud2", "ret"; }
fn run() {
    let t = trap::raised(|| { t_ud2(0); });
    check_eq!(t.what(), (6, 0), "UD2");
    check_eq!(t.frame.rip, t_ud2 as *const () as u64, "rip");
}
