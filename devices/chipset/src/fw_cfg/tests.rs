use super::*;
use crate::testing::{inb, keeps_contract};

const NOW: VirtualTime = VirtualTime(0);

fn ram() -> Arc<GuestRam> {
    Arc::new(GuestRam::new(&[(Gpa(0), 0x4000)]).expect("four pages"))
}

fn device(ram: &Arc<GuestRam>) -> FwCfgDevice {
    let mut items = Items::new();
    items.put(regs::NB_CPUS, 3u16.to_le_bytes().to_vec());
    items.add_file("etc/b", vec![5, 6, 7]).expect("a name");
    items.add_file("etc/a", vec![1; 300]).expect("a name");
    let count = std::sync::atomic::AtomicU8::new(0);
    let maker = move || vec![count.fetch_add(1, std::sync::atomic::Ordering::SeqCst); 9];
    items
        .add_made_file("etc/made", 4, Box::new(maker))
        .expect("a name");
    FwCfgDevice::new(items, Arc::clone(ram))
}

fn select(device: &mut FwCfgDevice, key: u16) {
    device.write(Region(0), regs::SELECTOR, &key.to_le_bytes(), NOW);
}

fn bytes(device: &mut FwCfgDevice, n: usize) -> Vec<u8> {
    (0..n).map(|_| inb(device, 0, regs::DATA, NOW)).collect()
}

/// Puts the structure at 1000h and starts it; gives the control word afterwards.
fn dma(device: &mut FwCfgDevice, ram: &GuestRam, control: u32, length: u32, to: u64) -> u32 {
    let mut operation = control.to_be_bytes().to_vec();
    operation.extend(length.to_be_bytes());
    operation.extend(to.to_be_bytes());
    ram.write(Gpa(0x1000), &operation).expect("RAM");
    device.write(Region(0), 4, &0u32.to_be_bytes(), NOW);
    device.write(Region(0), 8, &0x1000u32.to_be_bytes(), NOW);
    let mut status = [0; 4];
    ram.read(Gpa(0x1000), &mut status).expect("RAM");
    u32::from_be_bytes(status)
}

#[test]
fn contract() {
    keeps_contract(|| device(&ram()), &[(0, u64::from(regs::PORTS))]);
}

#[test]
fn the_signature_says_it_is_there() {
    let ram = ram();
    let mut d = device(&ram);
    select(&mut d, regs::SIGNATURE);
    assert_eq!(bytes(&mut d, 6), b"QEMU\0\0");
    select(&mut d, regs::ID);
    assert_eq!(bytes(&mut d, 4), [3, 0, 0, 0]);
    let mut halves = [[0; 4]; 2];
    d.read(Region(0), 4, &mut halves[0], NOW);
    d.read(Region(0), 8, &mut halves[1], NOW);
    assert_eq!(halves.concat(), b"QEMU CFG");
}

#[test]
fn items_end_in_zeros_and_a_selection_starts_anew() {
    let mut d = device(&ram());
    select(&mut d, regs::NB_CPUS);
    assert_eq!(bytes(&mut d, 3), [3, 0, 0]);
    select(&mut d, regs::NB_CPUS);
    assert_eq!(bytes(&mut d, 1), [3]);
    select(&mut d, 0x1234);
    assert_eq!(bytes(&mut d, 2), [0, 0]);
}

#[test]
fn the_directory_is_big_endian() {
    let mut d = device(&ram());
    select(&mut d, regs::FILE_DIRECTORY);
    assert_eq!(bytes(&mut d, 4), [0, 0, 0, 3]);
    let a = bytes(&mut d, 64);
    // Size, key, reserved, name.
    assert_eq!(a[..8], [0, 0, 1, 44, 0, 0x20, 0, 0]);
    assert_eq!(&a[8..14], b"etc/a\0");
    let b = bytes(&mut d, 64);
    assert_eq!(b[..8], [0, 0, 0, 3, 0, 0x21, 0, 0]);
    select(&mut d, 0x21);
    assert_eq!(bytes(&mut d, 4), [5, 6, 7, 0]);
}

#[test]
fn a_made_file_is_made_at_each_selection() {
    let mut d = device(&ram());
    select(&mut d, 0x22);
    assert_eq!(bytes(&mut d, 5), [0, 0, 0, 0, 0]);
    select(&mut d, 0x22);
    assert_eq!(bytes(&mut d, 5), [1, 1, 1, 1, 0]);
}

#[test]
fn dma_selects_skips_and_reads() {
    let ram = ram();
    let mut d = device(&ram);
    ram.fill(ram.find(Gpa(0x2000), 8).expect("RAM"), 0xee, 8);
    let select_and_skip = 0x21 << 16 | regs::DMA_SELECT | regs::DMA_SKIP;
    assert_eq!(dma(&mut d, &ram, select_and_skip, 1, 0), 0);
    assert_eq!(dma(&mut d, &ram, regs::DMA_READ, 4, 0x2000), 0);
    let mut read = [0; 5];
    ram.read(Gpa(0x2000), &mut read).expect("RAM");
    assert_eq!(read, [6, 7, 0, 0, 0xee]);
}

#[test]
fn dma_errors_are_told() {
    let ram = ram();
    let mut d = device(&ram);
    let read = 0x20 << 16 | regs::DMA_SELECT | regs::DMA_READ;
    // Not RAM; the end of RAM; the end of addresses; an item that cannot be written.
    assert_eq!(dma(&mut d, &ram, read, 8, 0x10_0000), regs::DMA_ERROR);
    assert_eq!(dma(&mut d, &ram, read, 0x20, 0x3ff0), regs::DMA_ERROR);
    assert_eq!(
        dma(&mut d, &ram, read, u32::MAX, u64::MAX - 3),
        regs::DMA_ERROR
    );
    let write = 0x20 << 16 | regs::DMA_SELECT | regs::DMA_WRITE;
    assert_eq!(dma(&mut d, &ram, write, 4, 0x2000), regs::DMA_ERROR);
    // Nothing asked for is no error.
    assert_eq!(dma(&mut d, &ram, 0, 4, 0x2000), 0);
}

/// A device whose item 20h is larger than a turn, RAM for it, and the control word of a read that has begun.
fn reading(length: u32) -> (FwCfgDevice, Arc<GuestRam>, u32) {
    let ram = Arc::new(GuestRam::new(&[(Gpa(0), 8 << 20)]).expect("memory"));
    let mut items = Items::new();
    items.add_file("etc/a", vec![7; 3 << 20]).expect("a name");
    let mut d = FwCfgDevice::new(items, Arc::clone(&ram));
    let control = dma(&mut d, &ram, READ, length, TO);
    (d, ram, control)
}

const READ: u32 = 0x20 << 16 | regs::DMA_SELECT | regs::DMA_READ;
const TO: u64 = 0x2000;

fn control(ram: &GuestRam) -> u32 {
    let mut control = [0; 4];
    ram.read(Gpa(0x1000), &mut control).expect("RAM");
    u32::from_be_bytes(control)
}

/// How many bytes from `TO` on are `byte`.
fn written(ram: &GuestRam, byte: u8) -> usize {
    let mut all = vec![0; (8 << 20) - TO as usize];
    ram.read(Gpa(TO), &mut all).expect("RAM");
    all.iter().take_while(|&&b| b == byte).count()
}

#[test]
fn a_long_read_goes_in_turns() {
    let (mut d, ram, first) = reading(5 << 20);
    assert_eq!(first, READ, "the bits stay until it is done");
    ram.fill(
        ram.find(Gpa(TO + (3 << 20)), 2 << 20).expect("RAM"),
        0xee,
        2 << 20,
    );
    assert_eq!(written(&ram, 7), bus::TURN_BYTES as usize);
    for turn in 2..=5u64 {
        assert_eq!(control(&ram), READ);
        let due = d.deadline().expect("a turn");
        d.advance(VirtualTime(due.0 - 1));
        assert_eq!(d.deadline(), Some(due), "not before it is due");
        d.advance(due);
        let bytes = (turn * bus::TURN_BYTES).min(3 << 20);
        assert_eq!(written(&ram, 7) as u64, bytes);
    }
    assert_eq!((control(&ram), d.deadline()), (0, None));
    let mut rest = vec![0; 2 << 20];
    ram.read(Gpa(TO + (3 << 20)), &mut rest).expect("RAM");
    assert!(rest.iter().all(|&byte| byte == 0), "zeros past the end");
}

#[test]
fn a_read_of_everything_fails_at_the_end_of_ram() {
    let (mut d, ram, _) = reading(u32::MAX);
    let mut turns = 1;
    while let Some(due) = d.deadline() {
        d.advance(due);
        turns += 1;
    }
    assert_eq!((control(&ram), turns), (regs::DMA_ERROR, 8));
}

#[test]
fn skipping_is_done_at_once() {
    let (mut d, ram, _) = reading(0);
    let skip = 0x20 << 16 | regs::DMA_SELECT | regs::DMA_SKIP;
    assert_eq!(dma(&mut d, &ram, skip, u32::MAX, 0), 0);
    assert_eq!(bytes(&mut d, 1), [0], "behind the end");
}

#[test]
fn a_reset_drops_a_read() {
    let (mut d, ram, _) = reading(2 << 20);
    d.reset();
    assert_eq!(d.deadline(), None);
    d.advance(VirtualTime(u64::MAX));
    assert_eq!((control(&ram), written(&ram, 7)), (READ, 1 << 20));
}

#[test]
fn another_operation_or_selection_ends_a_read_with_an_error() {
    let (mut d, ram, _) = reading(2 << 20);
    select(&mut d, regs::SIGNATURE);
    assert_eq!((control(&ram), d.deadline()), (regs::DMA_ERROR, None));
    assert_eq!(bytes(&mut d, 4), b"QEMU");

    let (mut d, ram, _) = reading(2 << 20);
    // A structure elsewhere.
    let mut operation = (READ).to_be_bytes().to_vec();
    operation.extend(4u32.to_be_bytes());
    operation.extend((TO + (4 << 20)).to_be_bytes());
    ram.write(Gpa(0x1800), &operation).expect("RAM");
    d.write(Region(0), 8, &0x1800u32.to_be_bytes(), NOW);
    assert_eq!((control(&ram), d.deadline()), (regs::DMA_ERROR, None));
    let mut read = [0; 5];
    ram.read(Gpa(TO + (4 << 20)), &mut read).expect("RAM");
    assert_eq!(read, [7, 7, 7, 7, 0]);
    assert_eq!(written(&ram, 7), 1 << 20);
}

#[test]
fn names_have_a_limit() {
    let mut items = Items::new();
    assert!(items.add_file(&"n".repeat(55), vec![]).is_ok());
    for bad in [String::new(), "n".repeat(56), "\u{e9}".into()] {
        assert!(items.add_file(&bad, vec![]).is_err(), "{bad}");
    }
    assert!(items.add_file(&"n".repeat(55), vec![]).is_err(), "taken");
}
