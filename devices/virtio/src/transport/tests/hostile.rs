//! Drivers that mean no good.

use super::*;

const HEADER: u64 = 0x8000;
const DATA: u64 = 0x1_0000;
const STATUS_BYTE: u64 = 0xa000;
const TABLE: u64 = 0x2_0000;
const BASE: u64 = 0xfebf_0000;

/// Turns until nothing is left; there is an end.
fn finish(rig: &mut Rig) {
    for _ in 0..10_000 {
        match rig.function.deadline() {
            Some(due) => rig.function.advance(due),
            None => return,
        }
    }
    panic!("it does not end");
}

fn needs_reset(rig: &mut Rig) -> bool {
    rig.get(STATUS, 1) as u8 & status::NEEDS_RESET != 0
}

/// 2.7.5: a chain that goes in a circle, in the queue's table and in one of its own, of data and of nothing.
#[test]
fn circles_of_descriptors_need_a_reset() {
    for (indirect, len) in [(false, 512), (true, 512), (false, 0), (true, 0)] {
        let mut rig = Rig::new();
        rig.start(registers::INDIRECT_DESC);
        let table = if indirect { TABLE } else { DESC };
        rig.driver.descriptor(table, 0, (DATA, len, NEXT, 1));
        rig.driver.descriptor(table, 1, (DATA, len, NEXT, 0));
        if indirect {
            rig.driver.descriptor(DESC, 0, (TABLE, 32, INDIRECT, 0));
        }
        rig.driver.offer(0);
        rig.notify();
        assert!(needs_reset(&mut rig), "{indirect} {len}");
        assert_eq!(rig.function.deadline(), None);
        assert_eq!(rig.driver.used(0).0, 0);
        // It hears nothing more before the reset.
        rig.notify();
        rig.function.advance(VirtualTime(u64::MAX));
        assert_eq!(rig.driver.used(0).0, 0);
        rig.set(STATUS, 0, 1);
        rig.driver.restart();
        rig.start(0);
        rig.offer_write();
        rig.notify();
        assert!(rig.is_done());
    }
}

/// Registers are no memory that a device reaches, its own neither.
#[test]
fn rings_and_buffers_in_registers_need_a_reset() {
    // Descriptors, available ring, used ring.
    for ring in [0x20, 0x28, 0x30] {
        let mut rig = Rig::new();
        rig.configure(regs::BAR + 16, &(BASE as u32).to_le_bytes());
        rig.start(0);
        rig.set(STATUS, 0, 1);
        rig.accept(registers::VERSION_1);
        for (offset, at) in [(0x20, DESC), (0x28, AVAIL), (0x30, USED)] {
            rig.set(offset, if offset == ring { BASE } else { at }, 8);
        }
        rig.set(0x1c, 1, 2);
        rig.set(STATUS, 0xf, 1);
        rig.offer_write();
        rig.notify();
        assert!(needs_reset(&mut rig), "{ring:#x}");
        assert_eq!(rig.function.deadline(), None, "{ring:#x}");
    }
    let mut rig = Rig::new();
    rig.start(0);
    let chain = [
        (HEADER, 16, false),
        (BASE, 512, true),
        (STATUS_BYTE, 1, true),
    ];
    rig.driver.chain(0, &chain);
    rig.driver.offer(0);
    rig.notify();
    assert!(needs_reset(&mut rig));
}

/// A read over the rings it is described by: what the device has copied counts.
#[test]
fn data_over_the_rings() {
    for over in [DESC, AVAIL, USED] {
        let mut rig = Rig::new();
        rig.start(0);
        rig.driver.write(HEADER, &[0; 16]);
        let chain = [
            (HEADER, 16, false),
            (over, 4096, true),
            (STATUS_BYTE, 1, true),
        ];
        rig.driver.write(STATUS_BYTE, &[0xee]);
        rig.driver.chain(0, &chain);
        rig.driver.offer(0);
        rig.notify();
        finish(&mut rig);
        assert_eq!(rig.driver.read(STATUS_BYTE, 1), [0], "{over:#x}");
        rig.function.reset();
        assert_eq!(rig.function.deadline(), None);
    }
}

/// Lengths that together are more than any number of 32 bits.
#[test]
fn lengths_do_not_overflow() {
    let mut rig = Rig::new();
    rig.start(0);
    let all = RAM_BYTES as u32;
    let mut chain = vec![(HEADER, 16, false)];
    chain.extend([(0, all, true); 200]);
    chain.push((u64::MAX - 511, 512, true));
    rig.driver.chain(0, &chain);
    rig.driver.offer(0);
    rig.notify();
    assert!(needs_reset(&mut rig), "the end of addresses is no RAM");
}

/// Memory full of noise that looks like requests now and then.
#[test]
fn random_rings_have_an_end() {
    let mut seed = 0x27d4_eb2f_1656_67c5;
    for _ in 0..300 {
        let mut rig = Rig::new();
        rig.start(next(&mut seed) & 0x3000_0000);
        for at in (DESC..USED + 0x1000).step_by(8) {
            rig.driver.write(at, &next(&mut seed).to_le_bytes());
        }
        for index in 0..256 {
            let random = next(&mut seed);
            let at = random & 0xf_fff0;
            let len = (random >> 20 & 0x3_ffff) as u32;
            let indirect = (random >> 45 & random >> 47 & 1) as u16 * INDIRECT;
            let flags = (random >> 40 & 3) as u16 | indirect;
            let following = (random >> 50 & 0xff) as u16;
            rig.driver
                .descriptor(DESC, index, (at, len, flags, following));
        }
        for kind in [0u32, 1, 4, 11, 13] {
            rig.driver.write(16 * u64::from(kind), &kind.to_le_bytes());
        }
        rig.driver.write(AVAIL + 2, &200u16.to_le_bytes());
        rig.notify();
        finish(&mut rig);
        rig.function.reset();
        assert_eq!(rig.function.deadline(), None);
    }
}
