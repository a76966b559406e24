//! Routing of lines and messages, and the fabric with many vCPUs on threads of their own.

mod storms;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use bus::{Device, Msi, MsiSink, Region, VirtualTime};

use super::*;
use crate::ioapic::IoApicDevice;
use crate::message::{DeliveryMode, Destination, Trigger};
use crate::pic::PicDevice;
use crate::testing::{XorShift, outb};

const T0: VirtualTime = VirtualTime(0);

/// Counts signals, and lets a thread wait for one.
#[derive(Default)]
struct Signal {
    count: AtomicUsize,
    flag: Mutex<bool>,
    wake: Condvar,
}

impl VcpuSignal for Signal {
    fn attention(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
        *self.flag.lock().expect("unpoisoned") = true;
        self.wake.notify_all();
    }
}

impl Signal {
    fn take(&self) -> usize {
        self.count.swap(0, Ordering::SeqCst)
    }

    /// Waits for a signal; false when none came for a long time.
    fn wait(&self) -> bool {
        let flag = self.flag.lock().expect("unpoisoned");
        let (mut flag, result) = self
            .wake
            .wait_timeout_while(flag, Duration::from_secs(20), |f| !*f)
            .expect("unpoisoned");
        *flag = false;
        !result.timed_out()
    }
}

struct Board {
    fabric: Arc<InterruptFabric>,
    signals: Vec<Arc<Signal>>,
}

fn fabric(vcpus: u32) -> Arc<InterruptFabric> {
    InterruptFabric::new(&FabricConfig {
        apic_ids: (0..vcpus).collect(),
        bus_hz: 1_000_000_000,
        tsc_hz: 2_000_000_000,
        physical_address_bits: 39,
        x2apic: true,
        tsc_deadline: true,
    })
}

fn board(vcpus: u32) -> Board {
    let fabric = fabric(vcpus);
    let signals: Vec<_> = (0..vcpus as usize)
        .map(|vcpu| {
            let signal = Arc::new(Signal::default());
            fabric.connect(vcpu, signal.clone());
            signal
        })
        .collect();
    Board { fabric, signals }
}

impl Board {
    fn enable(&self) {
        for vcpu in 0..self.fabric.vcpus() {
            self.write(vcpu, 0xf0, 0x1ff);
        }
    }

    fn x2apic(&self) {
        self.enable();
        for vcpu in 0..self.fabric.vcpus() {
            let bsp = if vcpu == 0 { 0x100 } else { 0 };
            self.fabric
                .msr_write(vcpu, 0x1b, 0xfee0_0c00 | bsp, T0)
                .expect("legal");
        }
    }

    fn write(&self, vcpu: usize, offset: u64, value: u32) {
        self.fabric
            .mmio_write(vcpu, offset, &value.to_le_bytes(), T0);
    }

    fn icr(&self, vcpu: usize, destination: u32, command: u32) {
        self.write(vcpu, 0x310, destination << 24);
        self.write(vcpu, 0x300, command);
    }

    /// The vCPUs that got `vector`, each of which takes it and ends it.
    fn who(&self, vector: u8) -> Vec<usize> {
        let mut who = Vec::new();
        for vcpu in 0..self.fabric.vcpus() {
            if self.fabric.has_interrupt(vcpu) {
                assert_eq!(self.fabric.acknowledge(vcpu), Some(vector));
                if self.fabric.mmio_base(vcpu).is_some() {
                    self.write(vcpu, 0xb0, 0);
                } else {
                    self.fabric.msr_write(vcpu, 0x80b, 0, T0).expect("EOI");
                }
                who.push(vcpu);
            }
        }
        who
    }

    fn ioapic_entry(&self, pin: u32, entry: u64) {
        let mut device = IoApicDevice::new(self.fabric.clone());
        for (half, value) in [(1, (entry >> 32) as u32), (0, entry as u32)] {
            let index = 0x10 + 2 * pin + half;
            device.write(Region(0), 0, &index.to_le_bytes(), T0);
            device.write(Region(0), 0x10, &value.to_le_bytes(), T0);
        }
    }

    /// Initializes the 8259A pair with vectors 30h and 38h, all unmasked.
    fn pic(&self) {
        let mut device = PicDevice::new(self.fabric.clone());
        for (region, base, cascade) in [(0, 0x30, 4), (1, 0x38, 2)] {
            outb(&mut device, region, 0, 0x11, T0);
            for word in [base, cascade, 1, 0] {
                outb(&mut device, region, 1, word, T0);
            }
        }
    }
}

#[test]
fn physical_destinations_and_shorthands() {
    let b = board(4);
    b.enable();
    b.icr(0, 2, 0x4041);
    assert_eq!(b.who(0x41), [2]);
    assert_eq!(b.signals[2].take(), 1);
    assert_eq!(b.signals[1].take(), 0);
    b.icr(0, 0xff, 0x4041);
    assert_eq!(b.who(0x41), [0, 1, 2, 3]);
    b.icr(1, 0, 0xc_4041);
    assert_eq!(b.who(0x41), [0, 2, 3]);
    b.icr(1, 0, 0x4_4041);
    assert_eq!(b.who(0x41), [1]);
    b.icr(1, 0, 0x8_4041);
    assert_eq!(b.who(0x41), [0, 1, 2, 3]);
    b.icr(1, 9, 0x4041);
    assert_eq!(b.who(0x41), []);
}

#[test]
fn logical_flat_and_cluster() {
    // SDM Vol 3 12.6.2.2.
    let b = board(4);
    b.enable();
    for vcpu in 0..4 {
        b.write(vcpu, 0xd0, 1 << (24 + vcpu));
    }
    b.icr(0, 0b1010, 0x4841);
    assert_eq!(b.who(0x41), [1, 3]);
    for (vcpu, ldr) in [0x11u32, 0x12, 0x21, 0x22].into_iter().enumerate() {
        b.write(vcpu, 0xe0, 0x0fff_ffff);
        b.write(vcpu, 0xd0, ldr << 24);
    }
    b.icr(0, 0x13, 0x4841);
    assert_eq!(b.who(0x41), [0, 1]);
    b.icr(0, 0x22, 0x4841);
    assert_eq!(b.who(0x41), [3]);
    b.icr(0, 0xf1, 0x4841);
    assert_eq!(b.who(0x41), [0, 2]);
}

#[test]
fn logical_x2apic() {
    // SDM Vol 3 12.12.10: cluster in bits 31:16, members in bits 15:0.
    let b = board(40);
    b.x2apic();
    let icr = |destination: u64| {
        b.fabric
            .msr_write(0, 0x830, destination << 32 | 0x4841, T0)
            .expect("legal")
    };
    icr(0x1_8001);
    assert_eq!(b.who(0x41), [16, 31]);
    icr(0x2_00ff);
    assert_eq!(b.who(0x41), (32..40).collect::<Vec<_>>());
    icr(0xffff_ffff);
    assert_eq!(b.who(0x41).len(), 40);
}

#[test]
fn lowest_priority_goes_to_one_of_the_least_busy() {
    let b = board(4);
    b.enable();
    for vcpu in 0..4 {
        b.write(vcpu, 0xd0, 1 << (24 + vcpu));
    }
    b.write(0, 0x80, 0x30);
    b.write(2, 0x80, 0x30);
    b.write(3, 0x80, 0x20);
    b.icr(0, 0xf, 0x4941);
    assert_eq!(b.who(0x41), [1]);
    b.write(1, 0x80, 0x30);
    b.icr(0, 0xf, 0x4941);
    assert_eq!(b.who(0x41), [3]);
    for vcpu in 0..4 {
        b.write(vcpu, 0x80, 0);
    }
    let mut reached: Vec<_> = (0..16)
        .flat_map(|_| {
            b.icr(0, 0xf, 0x4941);
            b.who(0x41)
        })
        .collect();
    assert_eq!(reached.len(), 16);
    reached.sort_unstable();
    reached.dedup();
    assert_eq!(reached, [0, 1, 2, 3], "equals take turns");
}

#[test]
fn init_and_start_up() {
    let b = board(2);
    b.icr(0, 1, 0xc500);
    assert!(b.fabric.has_init(1));
    assert_eq!(b.signals[1].take(), 1);
    b.icr(0, 1, 0x8500);
    assert_eq!(b.signals[1].take(), 0);
    b.icr(0, 1, 0x4699);
    b.fabric.init_reset(1);
    assert_eq!(b.fabric.take_start(1), (true, Some(0x99)));
    assert_eq!(b.fabric.take_start(1), (false, None));
    b.icr(0, 1, 0x4400);
    assert!(b.fabric.has_pending(1) && !b.fabric.has_interrupt(1));
    assert!(b.fabric.take_nmi(1));
    assert!(!b.fabric.take_nmi(1));
}

#[test]
fn isa_lines_reach_both_controllers() {
    let b = board(1);
    b.enable();
    // ISA 0 is at pin 2, the others at their own number.
    b.ioapic_entry(0, 0x50);
    b.ioapic_entry(2, 0x51);
    b.ioapic_entry(4, 0x52);
    b.fabric.set_gsi(0, true);
    assert_eq!(b.who(0x51), [0]);
    b.fabric.set_gsi(4, true);
    assert_eq!(b.who(0x52), [0]);
    b.fabric.set_gsi(2, true);
    assert_eq!(b.who(0), []);
    b.pic();
    b.write(0, 0x350, 0x700);
    b.fabric.set_gsi(4, false);
    b.fabric.set_gsi(4, true);
    assert!(b.fabric.has_interrupt(0));
    assert_eq!(b.fabric.acknowledge(0), Some(0x34), "ExtINT first");
    assert_eq!(b.fabric.acknowledge(0), Some(0x52));
}

#[test]
fn lines_beyond_the_board_are_ignored() {
    let b = board(1);
    for line in [24, 32, 255, u32::MAX] {
        b.fabric.set_gsi(line, true);
        b.fabric.set_gsi(line, false);
    }
}

#[test]
fn level_interrupts_end_at_the_io_apic() {
    let b = board(2);
    b.x2apic();
    b.ioapic_entry(16, 0x0100_0000_0000_8041);
    b.fabric.set_gsi(16, true);
    assert_eq!(b.who(0x41), [1]);
    assert_eq!(b.who(0x41), [1], "still asserted at the EOI");
    b.fabric.set_gsi(16, false);
    assert_eq!(b.who(0x41), [1], "was sent at the EOI before");
    assert_eq!(b.who(0x41), []);
}

#[test]
fn a_level_waits_for_a_local_apic_that_is_off() {
    let b = board(1);
    b.ioapic_entry(16, 0x8041);
    b.fabric.set_gsi(16, true);
    assert!(!b.fabric.has_interrupt(0));
    b.enable();
    assert_eq!(b.fabric.acknowledge(0), Some(0x41));
}

#[test]
fn ext_int_opens_and_closes_with_lvt0() {
    let b = board(2);
    b.pic();
    b.fabric.set_gsi(1, true);
    assert!(!b.fabric.has_interrupt(0), "LVT0 is masked after reset");
    b.fabric.set_virtual_wire(0);
    assert!(b.fabric.has_interrupt(0) && !b.fabric.has_interrupt(1));
    assert!(b.signals[0].take() > 0);
    b.write(0, 0x350, 0x1_0700);
    assert!(!b.fabric.has_interrupt(0));
    assert_eq!(b.fabric.acknowledge(0), None);
    // A disabled local APIC leaves INTR to the processor.
    b.fabric.msr_write(0, 0x1b, 0xfee0_0100, T0).expect("legal");
    assert!(b.fabric.has_interrupt(0));
    assert_eq!(b.fabric.acknowledge(0), Some(0x31));
    assert!(!b.fabric.has_interrupt(0));
}

#[test]
fn lint0_as_fixed_follows_intr() {
    let b = board(1);
    b.enable();
    b.pic();
    b.write(0, 0x350, 0x61);
    b.fabric.set_gsi(0, true);
    assert_eq!(b.who(0x61), [0]);
    assert!(!b.fabric.has_interrupt(0));
}

/// What INTR did while LVT0 was masked is neither an edge nor a level of now.
#[test]
fn lint0_sees_nothing_of_what_passed_while_it_was_masked() {
    let b = board(1);
    b.enable();
    b.pic();
    b.write(0, 0x350, 0x61);
    b.fabric.set_gsi(1, true);
    assert_eq!(b.who(0x61), [0]);
    b.write(0, 0x350, 0x1_0061);
    let mut pic = PicDevice::new(b.fabric.clone());
    outb(&mut pic, 0, 1, 0xff, T0);
    // Now low, and so no level interrupt.
    b.write(0, 0x350, 0x8062);
    assert_eq!(b.who(0), []);
    b.write(0, 0x350, 0x1_0063);
    outb(&mut pic, 0, 1, 0, T0);
    // The edge was before the entry was unmasked.
    b.write(0, 0x350, 0x63);
    assert_eq!(b.who(0), []);
    outb(&mut pic, 0, 1, 0xff, T0);
    outb(&mut pic, 0, 1, 0, T0);
    assert_eq!(b.who(0x63), [0]);
}

/// A level that no local APIC has as its destination waits until one has.
#[test]
fn a_level_waits_for_the_one_it_is_for() {
    let make = |destination: u64| {
        let b = board(2);
        b.enable();
        b.ioapic_entry(16, destination << 56 | 0x8841);
        b.fabric.set_gsi(16, true);
        assert!(!b.fabric.has_interrupt(0) && !b.fabric.has_interrupt(1));
        b
    };
    let b = make(2);
    b.write(1, 0xd0, 2 << 24);
    assert_eq!(b.fabric.acknowledge(1), Some(0x41), "LDR");
    let b = make(0x21);
    b.write(1, 0xe0, 0x0fff_ffff);
    b.write(1, 0xd0, 0x11 << 24);
    assert!(!b.fabric.has_interrupt(1), "another cluster");
    b.write(1, 0xe0, u32::MAX);
    assert_eq!(b.fabric.acknowledge(1), Some(0x41), "DFR: now flat");
    let b = make(2);
    b.fabric.msr_write(1, 0x1b, 0xfee0_0c00, T0).expect("legal");
    assert_eq!(b.fabric.acknowledge(1), Some(0x41), "logical ID of x2APIC");
}

#[test]
fn message_signalled_interrupts() {
    // SDM Vol 3 12.11.1 and 12.11.2.
    let b = board(4);
    b.enable();
    for vcpu in 0..4 {
        b.write(vcpu, 0xd0, 1 << (24 + vcpu));
    }
    let signal = |address, data| b.fabric.signal(Msi { address, data });
    signal(0xfee0_2000, 0x41);
    assert_eq!(b.who(0x41), [2]);
    signal(0xfee0_5004, 0x42);
    assert_eq!(b.who(0x42), [0, 2]);
    signal(0xfee0_f00c, 0x43);
    assert_eq!(b.who(0x43).len(), 1, "redirection hint: one target");
    signal(0xfee0_f004, 0x144);
    assert_eq!(b.who(0x44).len(), 1, "lowest priority");
    signal(0xfed0_2000, 0x41);
    signal(0x1_fee0_2000, 0x41);
    signal(0xfee0_2000, 0x341);
    assert_eq!(b.who(0), []);
    signal(0xfee0_1000, 0x400);
    assert!(b.fabric.take_nmi(1));
    // Bits 15 and 14: a level, asserted or not. That of an edge means nothing.
    signal(0xfee0_2000, 0x8045);
    assert_eq!(b.who(0), [], "a level that is not asserted");
    signal(0xfee0_2000, 0xc045);
    assert_eq!(b.who(0x45), [2]);
    signal(0xfee0_2000, 0x4045);
    assert_eq!(b.who(0x45), [2]);
}

#[test]
fn timers_are_their_vcpus_own() {
    let b = board(2);
    b.x2apic();
    b.fabric.msr_write(1, 0x832, 0x4_0040, T0).expect("LVT");
    b.fabric.msr_write(1, 0x6e0, 2_000, T0).expect("deadline");
    assert_eq!(b.fabric.deadline(0), None);
    assert_eq!(b.fabric.deadline(1), Some(VirtualTime(1_000)));
    assert_eq!(b.fabric.earliest_deadline(), Some(VirtualTime(1_000)));
    b.fabric.advance(1, VirtualTime(999));
    assert!(!b.fabric.has_interrupt(1));
    b.signals[1].take();
    b.fabric.advance(1, VirtualTime(1_000));
    assert!(b.fabric.has_interrupt(1));
    assert_eq!(b.signals[1].take(), 1);
    assert_eq!(b.fabric.deadline(1), None);
}

#[test]
fn task_priority_hides_and_shows() {
    let b = board(1);
    b.enable();
    b.fabric.set_tpr(0, 0x50);
    let message = InterruptMessage {
        destination: Destination::Physical(0),
        mode: DeliveryMode::Fixed,
        vector: 0x51,
        trigger: Trigger::Edge,
    };
    b.fabric.deliver(message);
    assert!(!b.fabric.has_interrupt(0));
    b.signals[0].take();
    b.fabric.set_tpr(0, 0x40);
    assert!(b.fabric.has_interrupt(0));
    assert_eq!(b.signals[0].take(), 1);
    assert_eq!(b.fabric.tpr(0), 0x40);
    assert_eq!(b.fabric.pending_vector(0), Some(0x51));
}

#[test]
fn sixty_four_vcpus_lose_no_interrupt() {
    // Every vCPU passes a token on to the next one by IPI; a token lost or a wake-up missed stops the ring.
    const VCPUS: usize = 64;
    const ROUNDS: usize = 30;
    let b = Arc::new(board(VCPUS as u32));
    b.x2apic();
    let failed = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..VCPUS)
        .map(|vcpu| {
            let (b, failed) = (b.clone(), failed.clone());
            thread::spawn(move || {
                for _ in 0..ROUNDS {
                    let vector = loop {
                        if let Some(vector) = b.fabric.acknowledge(vcpu) {
                            break vector;
                        }
                        if !b.signals[vcpu].wait() || failed.load(Ordering::SeqCst) {
                            failed.store(true, Ordering::SeqCst);
                            return;
                        }
                    };
                    let next = ((vcpu + 1) % VCPUS) as u64;
                    let icr = next << 32 | 0x4000 | u64::from(vector);
                    b.fabric.msr_write(vcpu, 0x830, icr, T0).expect("legal");
                    b.fabric.msr_write(vcpu, 0x80b, 0, T0).expect("EOI");
                }
            })
        })
        .collect();
    b.fabric.msr_write(0, 0x83f, 0x91, T0).expect("self IPI");
    for thread in threads {
        thread.join().expect("no panic");
    }
    assert!(!failed.load(Ordering::SeqCst), "the ring stopped");
}

#[test]
fn everything_at_once_neither_deadlocks_nor_sticks() {
    // Random operations on all controllers from several threads. Then a level line must still get through, its EOI too.
    const VCPUS: usize = 4;
    let b = Arc::new(board(VCPUS as u32));
    b.enable();
    let until = Instant::now() + Duration::from_millis(300);
    let threads: Vec<_> = (0..VCPUS)
        .map(|vcpu| {
            let b = b.clone();
            thread::spawn(move || {
                let mut random = XorShift(vcpu as u64 + 1);
                let mut pic = PicDevice::new(b.fabric.clone());
                while Instant::now() < until {
                    let value = random.next();
                    let now = VirtualTime(value & 0xffff);
                    match random.below(10) {
                        0 => b.fabric.set_gsi(random.below(24) as u32, value & 1 != 0),
                        1 => b.icr(
                            vcpu,
                            random.below(5) as u32,
                            (value as u32 & 0xc_0810) | 0x4041,
                        ),
                        2 => b.write(
                            vcpu,
                            0x350,
                            [0x700, 0x1_0000, 0x8061, 0x61][random.below(4) as usize],
                        ),
                        3 => outb(
                            &mut pic,
                            random.below(3) as u8,
                            value & 1,
                            random.next() as u8,
                            now,
                        ),
                        4 => b.ioapic_entry(random.below(24) as u32, value & 0xff00_0000_0001_89ff),
                        5 => b.fabric.set_tpr(vcpu, (value & 0x30) as u8),
                        6 => b.fabric.signal(Msi {
                            address: 0xfee0_f000,
                            data: value as u32 & 0xff,
                        }),
                        7 => b.write(vcpu, 0x380, value as u32 & 0xff),
                        8 => b.fabric.advance(vcpu, now),
                        _ => {}
                    }
                    // A line that nobody lowers would interrupt for ever.
                    for _ in 0..4 {
                        if b.fabric.acknowledge(vcpu).is_some() {
                            b.write(vcpu, 0xb0, 0);
                        }
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no panic");
    }
    let mut pic = PicDevice::new(b.fabric.clone());
    pic.reset();
    for vcpu in 0..VCPUS {
        b.fabric.init_reset(vcpu);
    }
    b.enable();
    IoApicDevice::new(b.fabric.clone()).reset();
    b.fabric.set_gsi(20, false);
    b.ioapic_entry(20, 0x0300_0000_0000_8099);
    b.fabric.set_gsi(20, true);
    assert_eq!(b.who(0x99), [3]);
    b.fabric.set_gsi(20, false);
    assert_eq!(b.who(0x99), [3]);
    assert_eq!(b.who(0x99), []);
}

/// Holds up, once it is armed, whoever drives a line half-way: the 8259A pair has the level, the I/O APIC not yet.
#[derive(Default)]
struct HalfWay(Mutex<Option<(mpsc::Sender<()>, mpsc::Receiver<()>)>>);

impl VcpuSignal for HalfWay {
    fn attention(&self) {
        let armed = self.0.lock().expect("unpoisoned").take();
        if let Some((begin, done)) = armed {
            begin.send(()).expect("the other thread listens");
            // It may have to wait for this one.
            let _ = done.recv_timeout(Duration::from_millis(200));
        }
    }
}

/// Port F0h is written while a numeric error is on its way to the controllers: the line ends low.
#[test]
fn the_line_of_numeric_errors_ends_at_its_last_level() {
    let half_way = Arc::new(HalfWay::default());
    let fabric = fabric(1);
    fabric.connect(0, half_way.clone());
    let b = Board {
        fabric,
        signals: Vec::new(),
    };
    b.enable();
    b.pic();
    b.fabric.set_virtual_wire(0);
    let (begin, begun) = mpsc::channel();
    let (done, handled) = mpsc::channel();
    *half_way.0.lock().expect("unpoisoned") = Some((begin, handled));
    thread::scope(|scope| {
        let fabric = &b.fabric;
        scope.spawn(move || {
            begun.recv().expect("IRQ 13 reaches the processor");
            fabric.acknowledge_ferr();
            // Whoever waits for it may have stopped waiting.
            let _ = done.send(());
        });
        fabric.set_ferr(0, true);
    });
    assert!(b.fabric.ignne(), "it is handled");
    assert_eq!(b.fabric.acknowledge(0), Some(0x3d), "the error's edge");
    b.ioapic_entry(13, 0x805d);
    assert_eq!(b.who(0x5d), [], "the I/O APIC's input is low");
}
