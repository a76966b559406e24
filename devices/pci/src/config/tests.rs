//! Facts from PCI Local Bus 3.0 chapter 6.

use super::*;

fn config() -> ConfigSpace {
    ConfigSpace::new(Identity {
        vendor: 0x1234,
        device: 0x5678,
        revision: 9,
        class: 0x02_00_01,
        subsystem_vendor: 0xabcd,
        subsystem: 0xef01,
    })
}

#[test]
fn header_layout() {
    // Figure 6-1.
    let c = config();
    assert_eq!(c.dword(0x00), 0x5678_1234);
    assert_eq!(c.dword(0x08), 0x0200_0109);
    assert_eq!(c.dword(0x2c), 0xef01_abcd);
    assert_eq!(c.word(0x0e) & 0xff, 0);
    assert_eq!(c.dword(4094), 0xffff_0000, "beyond the end");
}

#[test]
fn identity_is_read_only_and_command_is_not() {
    let mut c = config();
    for offset in (0..64).step_by(4) {
        c.write(offset, &[0xff; 4]);
    }
    assert_eq!(c.dword(0x00), 0x5678_1234);
    assert_eq!(c.dword(0x08), 0x0200_0109);
    assert_eq!(c.dword(0x2c), 0xef01_abcd);
    assert_eq!(c.command(), 0x0547);
    c.reset();
    assert_eq!(c.command(), 0);
}

#[test]
fn status_bits_clear_by_writing_one() {
    let mut c = config();
    c.set(regs::STATUS, &0x2010u16.to_le_bytes());
    c.write(regs::STATUS, &0x1000u16.to_le_bytes());
    assert_eq!(c.word(regs::STATUS), 0x2010);
    c.write(regs::STATUS, &0x2010u16.to_le_bytes());
    assert_eq!(c.word(regs::STATUS), 0x0010);
}

#[test]
fn sizing_a_base_address_register() {
    // 6.2.5.1: write ones, read back; the lowest writable bit is the size.
    let mut c = config();
    c.add_bar(0, BarKind::Memory32, 0x1000).expect("free");
    c.add_bar(1, BarKind::Io, 0x20).expect("free");
    c.add_bar(2, BarKind::Memory64, 1 << 33).expect("free");
    for n in 0..6 {
        c.write(regs::BAR + 4 * n, &[0xff; 4]);
    }
    let bars: Vec<_> = (0..6).map(|n| c.dword(regs::BAR + 4 * n)).collect();
    assert_eq!(
        bars,
        [0xffff_f000, 0xffff_ffe1, 0x0000_000c, 0xffff_fffe, 0, 0]
    );
}

#[test]
fn bars_decode_when_enabled() {
    let mut c = config();
    c.add_bar(0, BarKind::Memory64, 0x4000).expect("free");
    c.add_bar(4, BarKind::Io, 0x40).expect("free");
    c.write(0x10, &0x1234_4000u32.to_le_bytes());
    c.write(0x14, &0x0000_0008u32.to_le_bytes());
    c.write(0x20, &0x0000_c040u32.to_le_bytes());
    assert_eq!(c.bars().count(), 0);
    c.write(regs::COMMAND, &[2, 0]);
    let memory = Bar {
        index: 0,
        kind: BarKind::Memory64,
        base: 0x8_1234_4000,
        size_bytes: 0x4000,
    };
    assert_eq!(c.bars().collect::<Vec<_>>(), [memory]);
    c.write(regs::COMMAND, &[3, 0]);
    let io = Bar {
        index: 4,
        kind: BarKind::Io,
        base: 0xc040,
        size_bytes: 0x40,
    };
    assert_eq!(c.bars().collect::<Vec<_>>(), [memory, io]);
}

#[test]
fn wrong_layouts_are_refused() {
    let mut c = config();
    c.add_bar(4, BarKind::Memory64, 16).expect("free");
    assert_eq!(c.add_bar(5, BarKind::Io, 4), Err(ConfigError::BarTaken(5)));
    assert_eq!(c.add_bar(6, BarKind::Io, 4), Err(ConfigError::BarTaken(6)));
    assert_eq!(
        c.add_bar(0, BarKind::Io, 24),
        Err(ConfigError::BarSize {
            index: 0,
            size_bytes: 24
        })
    );
    assert_eq!(
        c.add_bar(3, BarKind::Memory64, 16),
        Err(ConfigError::BarTaken(3))
    );
    assert_eq!(
        c.add_capability(9, &[0; 254], &[]),
        Err(ConfigError::NoRoom(9))
    );
}

#[test]
fn capabilities_are_a_list() {
    // 6.7.
    let mut c = config();
    let first = c
        .add_capability(0x01, &[3, 0, 0, 0, 0], &[0, 0, 0xff])
        .expect("room");
    let second = c.add_capability(0x05, &[0, 0], &[]).expect("room");
    assert_eq!((first, second), (0x40, 0x48));
    assert_eq!(c.word(regs::STATUS) & 0x10, 0x10);
    assert_eq!(c.word(regs::CAPABILITIES) & 0xff, 0x40);
    assert_eq!(c.word(0x40), 0x4801);
    assert_eq!(c.word(0x48), 0x0005);
    c.write(0x40, &[0xff; 8]);
    assert_eq!(c.dword(0x40), 0x0003_4801);
    assert_eq!(c.dword(0x44), 0x0000_00ff);
}

#[test]
fn expansion_rom_sizes_and_decodes() {
    // 6.2.5.2: bit 0 enables; bits 31:11 are the address, of which those below the size read as zero.
    let mut c = config();
    assert_eq!(
        c.add_rom(1024),
        Err(ConfigError::BarSize {
            index: ROM_BAR,
            size_bytes: 1024
        })
    );
    c.add_rom(0x1_0000).expect("free");
    assert_eq!(c.add_rom(0x1_0000), Err(ConfigError::BarTaken(ROM_BAR)));
    c.write(0x30, &0xffff_fffeu32.to_le_bytes());
    assert_eq!(c.dword(0x30), 0xffff_0000);
    c.write(0x30, &0xc001_0001u32.to_le_bytes());
    assert_eq!(c.bars().count(), 0, "memory space is off");
    c.write(regs::COMMAND, &[2, 0]);
    let rom = Bar {
        index: ROM_BAR,
        kind: BarKind::Memory32,
        base: 0xc001_0000,
        size_bytes: 0x1_0000,
    };
    assert_eq!(c.bars().collect::<Vec<_>>(), [rom]);
    c.write(0x30, &0xc001_0000u32.to_le_bytes());
    assert_eq!(c.bars().count(), 0, "the ROM is off");
}
