//! Interprocessor interrupts to oneself (11.6), acceptance and priority (11.8), errors (11.5.3).

use runtime::apic::{bit, end_of_interrupt, read, reg, write};
use runtime::cpu;
use runtime::trap;
use runtime::{check, check_eq, section};

use crate::{count, listen, note, taken, window};

const SELF: u32 = 1 << 18;

fn idle() {
    for _ in 0..1000 {
        if read(reg::ICR) & 1 << 12 == 0 {
            return;
        }
    }
}

fn send(low: u32) {
    write(reg::ICR, low);
    idle();
}

pub fn run() {
    destinations();
    priorities();
    errors();
    nmi();
}

fn destinations() {
    section("11.6 interrupt command register");
    listen(&[0x40, 0x51, 0x52, 0x60]);
    send(SELF | 0x40);
    check!(bit(reg::IRR, 0x40), "11.8.4: requested");
    check!(!bit(reg::ISR, 0x40), "not in service with IF clear");
    check_eq!(count(), 0, "not taken with IF clear");
    window();
    check_eq!((count(), taken(0).0), (1, 0x40), "taken");
    check!(!bit(reg::IRR, 0x40) && !bit(reg::ISR, 0x40), "and ended");
    check!(!bit(reg::TMR, 0x40), "edge-triggered");
    // Twice the same vector: one request.
    send(SELF | 0x40);
    send(SELF | 0x40);
    window();
    check_eq!(
        count(),
        2,
        "11.8.4: two requests of a vector that is not taken are one"
    );

    let id = read(reg::ID) >> 24;
    let to = |high: u32, low: u32| {
        let before = count();
        write(reg::ICR_HIGH, high << 24);
        send(low);
        window();
        count() - before
    };
    check_eq!(to(id, 0x40), 1, "physical, own ID");
    check_eq!(to(id + 1, 0x40), 0, "physical, another ID");
    check_eq!(to(0xff, 0x40), 1, "physical broadcast");
    write(reg::LDR, 4 << 24);
    check_eq!(to(4, 0x40 | 1 << 11), 1, "logical, flat");
    check_eq!(to(3, 0x40 | 1 << 11), 0, "logical, flat, others");
    check_eq!(
        to(6, 0x40 | 1 << 11 | 1 << 8),
        1,
        "logical, lowest priority"
    );
    write(reg::DFR, 0x0fff_ffff);
    write(reg::LDR, 0x21 << 24);
    check_eq!(to(0x21, 0x40 | 1 << 11), 1, "logical, cluster");
    check_eq!(to(0x31, 0x40 | 1 << 11), 0, "logical, another cluster");
    check_eq!(to(0x22, 0x40 | 1 << 11), 0, "logical, another member");
    write(reg::DFR, 0xffff_ffff);
    write(reg::LDR, 0);
    check_eq!(to(0, 0x40 | 2 << 18), 1, "all including self");
    check_eq!(to(0, 0x40 | 3 << 18), 0, "all excluding self");
}

fn priorities() {
    section("11.8.3 priorities");
    listen(&[0x40, 0x51, 0x52, 0x60]);
    for vector in [0x40, 0x60, 0x51, 0x52] {
        send(SELF | vector);
    }
    cpu::enable_interrupts();
    cpu::disable_interrupts();
    let order = [taken(0).0, taken(1).0, taken(2).0, taken(3).0];
    check_eq!(
        (count(), order),
        (4, [0x60, 0x52, 0x51, 0x40]),
        "highest vector first"
    );

    // TPR holds back its class and below.
    listen(&[0x40, 0x51]);
    write(reg::TPR, 0x50);
    send(SELF | 0x51);
    send(SELF | 0x40);
    window();
    check_eq!(count(), 0, "TPR 50h holds 51h and 40h back");
    write(reg::TPR, 0x4f);
    window();
    check_eq!((count(), taken(0).0), (1, 0x51), "TPR 4Fh lets 51h pass");
    write(reg::TPR, 0);
    window();
    check_eq!((count(), taken(1).0), (2, 0x40), "TPR 0 lets 40h pass");
    // The sub-class of TPR does not matter.
    write(reg::TPR, 0x4f);
    send(SELF | 0x40);
    window();
    check_eq!(count(), 2, "the same class");
    write(reg::TPR, 0x30);
    window();
    check_eq!(count(), 3, "a lower class");
    write(reg::TPR, 0);
    // CR8 does the same.
    cpu::write_cr8(4);
    send(SELF | 0x40);
    window();
    check_eq!(count(), 3, "CR8 4 holds 40h back");
    cpu::write_cr8(3);
    window();
    check_eq!(count(), 4, "CR8 3 lets it pass");
    cpu::write_cr8(0);

    // In service: nothing of the same or a lower class.
    listen(&[]);
    for vector in [0x51, 0x52, 0x40, 0x60] {
        trap::handle(vector, Some(note));
    }
    send(SELF | 0x51);
    window();
    check!(bit(reg::ISR, 0x51), "51h in service");
    check_eq!(read(reg::PPR) & 0xf0, 0x50, "11.8.3.1: PPR");
    send(SELF | 0x52);
    send(SELF | 0x40);
    window();
    check_eq!(count(), 1, "52h and 40h wait");
    send(SELF | 0x60);
    window();
    check_eq!((count(), taken(1).0), (2, 0x60), "60h does not");
    check_eq!(read(reg::PPR) & 0xf0, 0x60, "PPR");
    end_of_interrupt();
    check!(
        !bit(reg::ISR, 0x60) && bit(reg::ISR, 0x51),
        "11.8.5: EOI ends the highest"
    );
    window();
    check_eq!(count(), 2, "51h is still in service");
    end_of_interrupt();
    window();
    check_eq!((count(), taken(2).0), (3, 0x52), "then 52h");
    end_of_interrupt();
    window();
    check_eq!((count(), taken(3).0), (4, 0x40), "then 40h");
    end_of_interrupt();
    check_eq!(read(reg::PPR), 0, "PPR");
    // A second request while the first is in service is kept.
    send(SELF | 0x40);
    window();
    send(SELF | 0x40);
    check!(
        bit(reg::ISR, 0x40) && bit(reg::IRR, 0x40),
        "in service and requested"
    );
    end_of_interrupt();
    window();
    end_of_interrupt();
    check_eq!(count(), 6, "both taken");
}

/// Latches and reads the error status.
fn error_status() -> u32 {
    write(reg::ESR, 0);
    read(reg::ESR)
}

fn errors() {
    section("11.5.3 errors");
    listen(&[0x70]);
    error_status();
    error_status();
    check_eq!(error_status(), 0, "no error");
    write(reg::LVT_ERROR, 0x70);
    send(SELF | 0x05);
    window();
    // Sent to oneself, it is also received.
    check_eq!(error_status() & 0x20, 0x20, "send illegal vector");
    check!(count() >= 1, "error interrupt");
    check_eq!(taken(0).0, 0x70, "error interrupt's vector");
    error_status();
    check_eq!(error_status(), 0, "cleared by the next write");
    write(reg::LVT_ERROR, 0x1_0000);
}

fn nmi() {
    section("6.7 nonmaskable interrupts");
    let id = read(reg::ID) >> 24;
    trap::handle(2, Some(nested));
    crate::COUNT.store(0, core::sync::atomic::Ordering::Relaxed);
    write(reg::ICR_HIGH, id << 24);
    // IF is clear: an NMI does not mind.
    write(reg::ICR, 4 << 8);
    idle();
    for _ in 0..100 {
        core::hint::spin_loop();
    }
    check_eq!(count(), 2, "6.7.1: a second NMI waits for IRET");
    check!(
        !WAS_NESTED.load(core::sync::atomic::Ordering::Relaxed),
        "6.7.1: not inside the first handler"
    );
    trap::handle(2, None);
}

static WAS_NESTED: core::sync::atomic::AtomicBool = core::sync::atomic::AtomicBool::new(false);

/// The first NMI sends another, which must not come before its IRET.
fn nested(frame: &mut trap::Frame) {
    use core::sync::atomic::Ordering;
    let before = count();
    note(frame);
    if before == 0 {
        write(reg::ICR, 4 << 8);
        idle();
        for _ in 0..100 {
            core::hint::spin_loop();
        }
        WAS_NESTED.store(count() != 1, Ordering::Relaxed);
    }
}
