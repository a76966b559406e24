//! Register layout of the HPET (IA-PC HPET specification 1.0a, 2.3).

/// Physical address of the registers.
pub const BASE: u64 = 0xfed0_0000;
/// Bytes of address space the registers take.
pub const MMIO_SIZE: u64 = 0x400;

/// Timers.
pub const TIMERS: usize = 3;
/// Main counter's period in nanoseconds.
pub const PERIOD_NS: u64 = 10;

/// General capabilities and identification.
pub const CAPABILITIES: u64 = 0x000;
/// General configuration.
pub const CONFIG: u64 = 0x010;
/// General interrupt status.
pub const STATUS: u64 = 0x020;
/// Main counter value.
pub const COUNTER: u64 = 0x0f0;
/// First timer's registers; 20h for each timer.
pub const TIMER: u64 = 0x100;

/// Revision 1, three timers, 64-bit counter, legacy replacement, vendor 8086h, period in femtoseconds.
pub const CAPABILITIES_VALUE: u64 =
    1 | (TIMERS as u64 - 1) << 8 | 1 << 13 | 1 << 15 | 0x8086 << 16 | (PERIOD_NS * 1_000_000) << 32;

/// CONFIG: the main counter runs and interrupts are allowed.
pub const CONFIG_ENABLE: u64 = 1 << 0;
/// CONFIG: timers 0 and 1 take the places of PIT and RTC.
pub const CONFIG_LEGACY: u64 = 1 << 1;

/// Timer: level triggered.
pub const TIMER_LEVEL: u64 = 1 << 1;
/// Timer: interrupts enabled.
pub const TIMER_INT_ENABLE: u64 = 1 << 2;
/// Timer: periodic.
pub const TIMER_PERIODIC: u64 = 1 << 3;
/// Timer: can be periodic.
pub const TIMER_PERIODIC_CAP: u64 = 1 << 4;
/// Timer: 64 bits wide.
pub const TIMER_SIZE_CAP: u64 = 1 << 5;
/// Timer: the next comparator write sets the accumulator too; clears itself.
pub const TIMER_VALUE_SET: u64 = 1 << 6;
/// Timer: works as 32 bits.
pub const TIMER_32BIT: u64 = 1 << 8;
/// Timer: where the route field starts; five bits.
pub const TIMER_ROUTE_SHIFT: u32 = 9;
/// Timer: I/O APIC inputs it can be routed to, 20 to 23.
pub const TIMER_ROUTES: u32 = 0x00f0_0000;
