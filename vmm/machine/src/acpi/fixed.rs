//! The fixed ACPI description table (ACPI 6.5, 5.2.9): where the board's power-management registers are.

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use guestmem::Gpa;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, SCI_GSI, bytes_of};
use crate::ports;

/// IA-PC boot architecture flags (table 5.10): legacy devices, 8042, no VGA.
const BOOT_ARCHITECTURE: u16 = 1 | 1 << 1 | 1 << 2;
/// CMOS index of the century byte.
const RTC_CENTURY: u8 = 0x32;
/// C2 and C3 latencies that say "not supported".
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;

fn port(address: u16, bytes: u8) -> GAS {
    let access = match bytes {
        1 => AccessSize::ByteAccess,
        2 => AccessSize::WordAccess,
        _ => AccessSize::DwordAccess,
    };
    GAS::new(
        AddressSpace::SystemIo,
        8 * bytes,
        0,
        access,
        u64::from(address),
    )
}

/// The table, pointing to `facs` and `dsdt`, both below 4 GByte.
pub(super) fn fadt(facs: Gpa, dsdt: Gpa) -> Vec<u8> {
    let mut table = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    table.firmware_ctrl = (facs.0 as u32).into();
    table.dsdt = (dsdt.0 as u32).into();
    table.x_dsdt = dsdt.0.into();
    table.sci_int = (SCI_GSI as u16).into();
    table.pm1a_evt_blk = u32::from(ports::PM1A_EVENT).into();
    table.pm1_evt_len = ports::PM1A_EVENT_LEN;
    table.pm1a_cnt_blk = u32::from(ports::PM1A_CONTROL).into();
    table.pm1_cnt_len = ports::PM1A_CONTROL_LEN;
    table.pm_tmr_blk = u32::from(ports::PM_TIMER).into();
    table.pm_tmr_len = ports::PM_TIMER_LEN;
    table.gpe0_blk = u32::from(ports::GPE0).into();
    table.gpe0_blk_len = ports::GPE0_LEN;
    table.p_lvl2_lat = NO_C2.into();
    table.p_lvl3_lat = NO_C3.into();
    table.century = RTC_CENTURY;
    table.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    table.reset_reg = port(ports::RESET_CONTROL, 1);
    table.reset_value = ports::RESET_VALUE;
    table.x_pm1a_evt_blk = port(ports::PM1A_EVENT, ports::PM1A_EVENT_LEN);
    table.x_pm1a_evt_blk.access_size = AccessSize::WordAccess;
    table.x_pm1a_cnt_blk = port(ports::PM1A_CONTROL, ports::PM1A_CONTROL_LEN);
    table.x_pm_tmr_blk = port(ports::PM_TIMER, ports::PM_TIMER_LEN);
    table.x_gpe0_blk = port(ports::GPE0, ports::GPE0_LEN);
    table.x_gpe0_blk.access_size = AccessSize::ByteAccess;
    bytes_of(&table.finalize())
}
