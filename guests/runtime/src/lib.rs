//! What every guest needs: entry, text on COM1, descriptor tables, exceptions as values, page tables,
//! checks, the end.
//!
//! A guest is entered at its ELF entry point in 64-bit mode, interrupts off, the first 4 GiB mapped to
//! themselves; or by a PVH or multiboot loader (QEMU's `-kernel`) in 32-bit mode, from where it goes to that
//! state itself.
//! It then takes nothing of the loader's: page tables, GDT, IDT, TSS and stacks are its own. It ends by
//! writing to port F4h: 10h when every check held (exit status 33), 11h otherwise (35).
//!
//! Everything here runs on one processor and, apart from handlers, one flow of control; that is what makes
//! the `static mut` state sound. Other processors ([`smp`]) run what a guest gives them, on stacks and tables of
//! their own, and keep to atomics.

#![no_std]

pub mod apic;
pub mod boot;
mod check;
pub mod cpu;
pub mod descriptors;
mod intrinsics;
pub mod legacy;
pub mod memory;
pub mod paging;
mod serial;
pub mod smp;
mod start;
pub mod trap;
pub mod vmx;

pub use check::{finish, record, section, skip};
pub use serial::{Serial, exit};

/// Names the function a guest starts with.
#[macro_export]
macro_rules! guest {
    ($name:literal, $main:path) => {
        // SAFETY: the one function of this name; `start` calls it.
        #[unsafe(no_mangle)]
        extern "C" fn guest_main() -> ! {
            $crate::section($name);
            $main();
            $crate::finish()
        }
    };
}

/// Prints to COM1.
#[macro_export]
macro_rules! print {
    ($($argument:tt)*) => {{
        use core::fmt::Write;
        let _ = write!($crate::Serial, $($argument)*);
    }};
}

/// Prints a line to COM1.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => {{
        use core::fmt::Write;
        let _ = writeln!($crate::Serial, $($argument)*);
    }};
}

/// Checks a condition; says where and what when it does not hold, and goes on.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($what:tt)*) => {
        if $crate::record($condition) {
        } else {
            $crate::println!("FAIL {}:{}: {}", file!(), line!(), format_args!($($what)*));
        }
    };
}

/// Checks that two values are equal; prints both when they are not, and goes on.
#[macro_export]
macro_rules! check_eq {
    ($actual:expr, $expected:expr, $($what:tt)*) => {{
        let (actual, expected) = ($actual, $expected);
        if !$crate::record(actual == expected) {
            $crate::println!(
                "FAIL {}:{}: {}: {:x?}, expected {:x?}",
                file!(),
                line!(),
                format_args!($($what)*),
                actual,
                expected
            );
        }
    }};
}

/// Defines a function in assembly, reached by its address: the tests need to know where an instruction
/// lies. Its argument is in RDI.
#[macro_export]
macro_rules! snippet {
    ($($name:ident: $($line:literal),+);+ $(;)?) => {
        $(
            ::core::arch::global_asm!(
                ".text",
                ".balign 16",
                concat!(".globl ", stringify!($name)),
                concat!(stringify!($name), ":"),
                $($line),+
            );
        )+
        // SAFETY: the assembly just above keeps to the C calling convention, or ends in an exception.
        unsafe extern "C" {
            $(
                #[allow(missing_docs, unused)]
                safe fn $name(argument: u64) -> u64;
            )+
        }
    };
}

/// Declares labels inside of snippets, for [`address!`].
#[macro_export]
macro_rules! labels {
    ($($name:ident),+ $(,)?) => {
        // SAFETY: labels of this guest's own assembly; only their addresses are used.
        unsafe extern "C" {
            $(safe fn $name();)+
        }
    };
}

/// Address of a snippet or of another function.
#[macro_export]
macro_rules! address {
    ($function:path) => {
        $function as *const () as u64
    };
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    println!("FAIL {info}");
    exit(0x11)
}
