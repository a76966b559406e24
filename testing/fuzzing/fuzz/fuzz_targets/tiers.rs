//! The target `tiers` with bytes from libFuzzer.

#![no_main]

use std::cell::RefCell;

use fuzzing::Target;

thread_local! {
    static TARGET: RefCell<Box<dyn Target>> =
        RefCell::new(fuzzing::target("tiers").expect("there is one of that name"));
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| TARGET.with_borrow_mut(|target| target.run(data)));
