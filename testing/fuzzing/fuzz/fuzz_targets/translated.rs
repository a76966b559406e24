//! The target `translated` with bytes from libFuzzer.

#![no_main]

use std::cell::RefCell;

use fuzzing::Target;

thread_local! {
    static TARGET: RefCell<Box<dyn Target>> =
        RefCell::new(fuzzing::target("translated").expect("there is one of that name"));
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| TARGET.with_borrow_mut(|target| target.run(data)));
