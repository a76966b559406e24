//! Nothing is lost under storms of messages and of register writes.

use std::sync::Barrier;

use super::*;

/// A message of lowest priority does not end at a local APIC that goes off between being chosen and being asked.
#[test]
fn lowest_priority_finds_another_when_the_chosen_one_goes_off() {
    let b = board(3);
    b.enable();
    b.write(0, 0x80, 0x20);
    b.write(2, 0x80, 0x30);
    let busy_least = b.fabric.slots[1].logical.load(Ordering::SeqCst);
    b.write(1, 0xf0, 0xff);
    // What the sender saw just before.
    b.fabric.slots[1]
        .logical
        .store(busy_least, Ordering::SeqCst);
    b.icr(0, 0xff, 0x4141);
    assert_eq!(b.who(0x41), [0]);
    // An illegal vector is one target's error, and the end of it.
    b.icr(0, 0xff, 0x4141);
    b.fabric.deliver(InterruptMessage {
        destination: Destination::All,
        mode: DeliveryMode::LowestPriority,
        vector: 5,
        trigger: Trigger::Edge,
    });
    assert_eq!(b.who(0x41), [0]);
}

/// 64 vCPUs that all send to all others at once: what each sent arrives at each, in every round.
#[test]
fn a_storm_of_broadcasts_reaches_everybody() {
    const VCPUS: usize = 64;
    const ROUNDS: usize = 20;
    const FIRST: usize = 0x40;
    let b = Arc::new(board(VCPUS as u32));
    b.x2apic();
    let barrier = Arc::new(Barrier::new(VCPUS));
    let threads: Vec<_> = (0..VCPUS)
        .map(|vcpu| {
            let (b, barrier) = (b.clone(), barrier.clone());
            thread::spawn(move || {
                let mut missed = 0;
                let mut seen = [0; VCPUS];
                let take = |seen: &mut [usize; VCPUS]| {
                    while let Some(vector) = b.fabric.acknowledge(vcpu) {
                        seen[usize::from(vector) - FIRST] += 1;
                        b.fabric.msr_write(vcpu, 0x80b, 0, T0).expect("EOI");
                    }
                };
                for _ in 0..ROUNDS {
                    let all_but_self = 0xc_4000 | (FIRST + vcpu) as u64;
                    b.fabric
                        .msr_write(vcpu, 0x830, all_but_self, T0)
                        .expect("legal");
                    take(&mut seen);
                    barrier.wait();
                    take(&mut seen);
                    let expected = |sender: usize| usize::from(sender != vcpu);
                    missed += (0..VCPUS).filter(|&s| seen[s] != expected(s)).count();
                    seen.fill(0);
                    barrier.wait();
                }
                missed
            })
        })
        .collect();
    let missed: Vec<_> = threads
        .into_iter()
        .map(|thread| thread.join().expect("no panic"))
        .collect();
    assert_eq!(missed, [0; VCPUS]);
}

/// The levels of the I/O APIC's inputs, as the test drives them.
type Levels = [bool; 24];

/// No input is asserted, open and idle while a local APIC would take its message.
fn no_level_is_forgotten(b: &Board, levels: &Levels) {
    for (pin, _) in levels.iter().enumerate().filter(|(_, high)| **high) {
        let entry = lock(&b.fabric.ioapic).entry(pin).expect("a pin");
        let (vector, mode) = (entry as u8, entry >> 8 & 7);
        let waits = entry & (1 << 16 | 1 << 14) == 0 && entry & 1 << 15 != 0;
        if !waits || mode > 1 || vector < 16 {
            continue;
        }
        let destination = (entry >> 56) as u8;
        for vcpu in 0..b.fabric.vcpus() {
            let lapic = lock(&b.fabric.slots[vcpu].lapic);
            let named = match entry & 1 << 11 {
                0 => destination == 0xff || u32::from(destination) == b.fabric.apic_id(vcpu),
                _ => LogicalId::of(&lapic).matches(u32::from(destination)),
            };
            assert!(
                !(named && lapic.software_enabled()),
                "input {pin} waits with {entry:#x} for vCPU {vcpu}"
            );
        }
    }
}

/// Whatever is written to all the controllers, in whatever order: a level that is asserted is on its way, and what a
/// vCPU is told is what its local APIC has.
#[test]
fn no_level_is_lost_in_random_writes() {
    const VCPUS: usize = 4;
    for seed in 1..=40 {
        let mut random = XorShift(seed);
        let b = board(VCPUS as u32);
        b.enable();
        let mut levels: Levels = [false; 24];
        for _ in 0..3_000 {
            let vcpu = random.below(VCPUS as u64) as usize;
            let value = random.next() as u32;
            match random.below(14) {
                0 | 1 => {
                    let pin = 16 + random.below(8) as usize;
                    levels[pin] = value & 1 != 0;
                    b.fabric.set_gsi(pin as u32, levels[pin]);
                }
                2 | 3 => {
                    let destination = [0xff, 1, 2, 3, 0x11, 0x21, 0xf1][random.below(7) as usize];
                    let low = value & 0x1_8bff | if value & 1 << 20 != 0 { 0x8000 } else { 0 };
                    b.ioapic_entry(
                        16 + random.below(8) as u32,
                        destination << 56 | u64::from(low),
                    );
                }
                4 => b.write(vcpu, 0xd0, value & 0x33 << 24),
                5 => b.write(vcpu, 0xe0, [u32::MAX, 0x0fff_ffff][(value & 1) as usize]),
                6 => b.write(vcpu, 0xf0, value & 0x1ff),
                7 => {
                    let mode = [0xd00, 0x900, 0x900, 0x100][random.below(4) as usize];
                    let _ = b.fabric.msr_write(vcpu, 0x1b, 0xfee0_0000 | mode, T0);
                }
                8 if value & 7 == 0 => b.fabric.init_reset(vcpu),
                9 => b.fabric.set_tpr(vcpu, value as u8 & 0x70),
                10 => {
                    let eoi = u32::from(value as u8).to_le_bytes();
                    IoApicDevice::new(b.fabric.clone()).write(Region(0), 0x40, &eoi, T0);
                }
                _ => {
                    if b.fabric.acknowledge(vcpu).is_some() {
                        b.write(vcpu, 0xb0, 0);
                        let _ = b.fabric.msr_write(vcpu, 0x80b, 0, T0);
                    }
                }
            }
            no_level_is_forgotten(&b, &levels);
            for slot in &b.fabric.slots {
                let now = hint(lock(&slot.lapic).summary());
                assert_eq!(slot.hint.load(Ordering::SeqCst), now);
            }
        }
    }
}
