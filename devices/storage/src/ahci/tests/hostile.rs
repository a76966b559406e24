//! Drivers that mean no good.

use super::*;

const READ_10: [u8; 9] = [0x28, 0, 0, 0, 0, 5, 0, 0, 8];

/// Turns until nothing is left; there is an end.
fn finish(rig: &mut Rig) {
    for _ in 0..1000 {
        match rig.function.deadline() {
            Some(due) => rig.function.advance(due),
            None => return,
        }
    }
    panic!("it does not end");
}

/// Data that lands on what describes it: list, table with frame and regions, received frames.
#[test]
fn regions_over_the_controllers_own_structures() {
    for over in [LIST, TABLE, TABLE + 0x80, FRAMES, FRAMES + 0x40] {
        let mut rig = Rig::running();
        rig.settle();
        rig.packet(&READ_10, &[(over, 64), (over, 2048), (DATA, 0x1_0000)]);
        finish(&mut rig);
        let status = rig.get(PORT + 0x10);
        assert!(status != 0, "{over:#x}: the driver hears of an end");
        // And it goes on from a reset as new.
        rig.set(4, 1);
        rig.run();
        rig.settle();
        rig.packet(&READ_10, &[(DATA, 8 * 2048)]);
        assert_eq!(rig.get(PORT + 0x38), 0, "{over:#x}");
        assert_eq!(rig.read(DATA, 2048), [5; 2048], "{over:#x}");
    }
}

/// Registers are no memory that a device reaches: wherever the list, the table, the frames or the data are said to be.
#[test]
fn structures_in_registers_are_bus_errors() {
    const BASE: u64 = 0xfebf_0000;
    const HBFS: u32 = 1 << 29;
    let mut rig = Rig::running();
    rig.configure(regs::BAR + 4 * u16::from(BAR), &(BASE as u32).to_le_bytes());
    rig.configure(regs::COMMAND, &[6, 0]);
    rig.settle();
    rig.packet(&READ_10, &[(BASE + 0x100, 8 * 2048)]);
    assert_eq!(rig.get(PORT + 0x10) & HBFS, HBFS, "data");
    for (register, name) in [(0, "list"), (8, "frames")] {
        rig.set(4, 1);
        rig.run();
        rig.set(PORT + register, BASE as u32);
        rig.packet(&READ_10, &[(DATA, 8 * 2048)]);
        assert_eq!(rig.get(PORT + 0x10) & HBFS, HBFS, "{name}");
        rig.set(PORT + register + 4, u32::MAX);
        rig.set(PORT + register, u32::MAX);
    }
    rig.set(4, 1);
    rig.run();
    rig.put(LIST + 8, &BASE.to_le_bytes());
    rig.set(PORT + 0x38, 1);
    assert_eq!(rig.get(PORT + 0x10) & HBFS, HBFS, "table");
}

/// 3.3.10, 3.3.11: a connection that is held in reset or switched off carries no command.
#[test]
fn no_command_goes_over_a_connection_that_is_down() {
    for (det, seen) in [(1, 0), (4, 4)] {
        let mut rig = Rig::running();
        rig.settle();
        rig.set(PORT + 0x2c, det);
        assert_eq!(rig.get(PORT + 0x28) & 0xf, seen);
        rig.packet(&READ_10, &[(DATA, 8 * 2048)]);
        assert_eq!(rig.get(PORT + 0x38), 1, "it waits");
        assert_eq!(rig.function.deadline(), None);
        assert_eq!(rig.read(DATA, 2048), [0; 2048]);
        rig.set(PORT + 0x2c, 0);
        assert_eq!(rig.get(PORT + 0x28) & 0xf, 3);
    }
}

/// Memory full of noise, and commands from it.
#[test]
fn random_structures_have_an_end() {
    let mut seed = 0x6f2c_91d3_55ab_0e47;
    for round in 0..200 {
        let mut rig = Rig::running();
        for at in (LIST..TABLE + 0x2000).step_by(8) {
            rig.put(at, &next(&mut seed).to_le_bytes());
        }
        for slot in 0..32 {
            let random = next(&mut seed);
            let table = LIST + (random & 0x3f80);
            rig.put(LIST + 32 * slot + 8, &table.to_le_bytes());
            // Mostly commands, mostly packets that read.
            rig.put(table, &[0x27, 0x80, 0xa0, 1]);
            if random >> 32 & 3 != 0 {
                rig.put(table + 0x40, &[0x28, 0, 0, 0]);
            }
            for region in 0..8 {
                let at = next(&mut seed) & 0x1f_ffff;
                rig.put(table + 0x80 + 16 * region, &at.to_le_bytes());
            }
        }
        rig.set(PORT + 0x38, u32::MAX);
        for _ in 0..64 {
            finish(&mut rig);
            rig.set(PORT + 0x18, 0x10);
            rig.set(PORT + 0x18, 0x11);
            rig.set(PORT + 0x38, next(&mut seed) as u32);
        }
        rig.function.reset();
        assert_eq!(rig.function.deadline(), None, "{round}");
    }
}
