//! Symbols the compiler and `core` refer to. The string instructions do the work, so that no loop in here
//! becomes a call to itself.

use core::arch::{asm, global_asm};

/// # Safety
/// As C's memcpy.
// SAFETY: the one definition of what the compiler calls by this name.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") count => _,
            options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// As C's memmove.
// SAFETY: the one definition of what the compiler calls by this name.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= count {
        // SAFETY: the caller's promise; copying upward is right here.
        return unsafe { memcpy(to, from, count) };
    }
    // SAFETY: the caller's promise.
    unsafe {
        asm!("std", "rep movsb", "cld",
            inout("rdi") to.add(count).wrapping_sub(1) => _,
            inout("rsi") from.add(count).wrapping_sub(1) => _,
            inout("rcx") count => _,
            options(nostack));
    }
    to
}

/// # Safety
/// As C's memset.
// SAFETY: the one definition of what the compiler calls by this name.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rep stosb", inout("rdi") to => _, in("al") value as u8, inout("rcx") count => _,
            options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// As C's memcmp.
// SAFETY: the one definition of what the compiler calls by this name.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    for i in 0..count {
        // SAFETY: the caller's promise.
        let (x, y) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
    }
    0
}

/// # Safety
/// As BSD's bcmp.
// SAFETY: the one definition of what the compiler calls by this name.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { memcmp(a, b, count) }
}

// Referred to by `core`'s unwinding tables, never called: a panic ends the guest.
global_asm!(".globl rust_eh_personality", "rust_eh_personality:", "ud2");
