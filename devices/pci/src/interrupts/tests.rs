//! Facts from PCI Local Bus 3.0 6.8.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use bus::LineSink;

use super::*;
use crate::config::Identity;

#[derive(Default)]
struct Board {
    sent: Mutex<Vec<(u64, u32)>>,
    high: AtomicBool,
}

impl MsiSink for Board {
    fn signal(&self, msi: bus::Msi) {
        self.sent
            .lock()
            .expect("unpoisoned")
            .push((msi.address, msi.data));
    }
}

impl LineSink for Board {
    fn set_line(&self, line: u32, high: bool) {
        assert_eq!(line, 19, "device 3, INTA");
        self.high.store(high, Ordering::SeqCst);
    }
}

impl Board {
    fn sent(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut self.sent.lock().expect("unpoisoned"))
    }
    fn line(&self) -> bool {
        self.high.load(Ordering::SeqCst)
    }
}

struct Function {
    config: ConfigSpace,
    interrupts: Interrupts,
    board: Arc<Board>,
}

const MSI: u16 = 0x40;
const MSIX: u16 = 0x58;
const LAYOUT: MsixLayout = MsixLayout {
    vectors: 3,
    bar: 1,
    table: 0x100,
    pending: 0x200,
};

fn function() -> Function {
    let board = Arc::new(Board::default());
    let router = IntxRouter::new(board.clone());
    let mut config = ConfigSpace::new(Identity {
        vendor: 1,
        device: 2,
        revision: 0,
        class: 0,
        subsystem_vendor: 0,
        subsystem: 0,
    });
    let wiring = FunctionWiring::new(&router, board.clone(), Bdf::new(0, 3, 0), INTA);
    let mut interrupts = Interrupts::new(&mut config, wiring);
    interrupts.add_msi(&mut config, 4).expect("room");
    interrupts.add_msix(&mut config, LAYOUT).expect("room");
    Function {
        config,
        interrupts,
        board,
    }
}

impl Function {
    fn write(&mut self, offset: u16, data: &[u8]) {
        self.config.write(offset, data);
        self.interrupts.config_written(&mut self.config);
    }
    fn command(&mut self, command: u16) {
        self.write(regs::COMMAND, &command.to_le_bytes());
    }
    fn signal(&mut self, vector: u16) {
        self.interrupts.signal(&mut self.config, vector);
    }
    fn bar_write(&mut self, offset: u64, data: &[u8]) {
        assert!(self.interrupts.bar_write(&self.config, 1, offset, data));
    }
    fn bar(&self, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        assert!(self.interrupts.bar_read(1, offset, &mut data));
        u32::from_le_bytes(data)
    }
    fn level(&mut self, high: bool) {
        self.interrupts.set_level(&mut self.config, high);
    }
    fn status_intx(&self) -> bool {
        self.config.word(regs::STATUS) & 8 != 0
    }
}

#[test]
fn the_pin_follows_the_level_unless_it_is_off() {
    let mut f = function();
    assert_eq!(f.config.word(0x3c) >> 8, 1, "INTA");
    f.level(true);
    assert!(f.board.line() && f.status_intx());
    // 6.2.2: bit 10 silences the pin; 6.2.3: the status bit stays.
    f.command(0x400);
    assert!(!f.board.line() && f.status_intx());
    f.command(0);
    assert!(f.board.line());
    f.level(false);
    assert!(!f.board.line() && !f.status_intx());
}

#[test]
fn the_pin_is_silent_while_messages_are_on() {
    for control in [MSI + 2, MSIX + 2] {
        let mut f = function();
        f.level(true);
        f.write(
            control,
            &(if control == MSI + 2 { 1u16 } else { 0x8000 }).to_le_bytes(),
        );
        assert!(!f.board.line() && !f.status_intx());
        f.write(control, &[0, 0]);
        assert!(f.board.line() && f.status_intx());
        f.config.reset();
        f.interrupts.reset(&mut f.config);
        assert!(!f.board.line());
    }
}

#[test]
fn msi_capability_layout() {
    let mut f = function();
    // Figure 6-9: 64-bit address and per-vector masks; 4 messages are 2 in bits 3:1.
    assert_eq!(f.config.dword(MSI), 0x0184_5805);
    f.write(MSI, &[0xff; 24]);
    assert_eq!(f.config.dword(MSI), 0x01f5_5805);
    assert_eq!(f.config.dword(MSI + 4), 0xffff_fffc);
    assert_eq!(f.config.dword(MSI + 8), 0xffff_ffff);
    assert_eq!(f.config.dword(MSI + 12), 0x0000_ffff);
    assert_eq!(f.config.dword(MSI + 16), 0xf, "masks of four");
    assert_eq!(f.config.dword(MSI + 20), 0, "pending bits are read-only");
}

#[test]
fn msi_sends_address_and_data_with_the_vector_in_the_low_bits() {
    let mut f = function();
    f.command(4);
    f.signal(1);
    assert_eq!(f.board.sent(), [], "off");
    f.write(MSI + 4, &0xfee0_1000u64.to_le_bytes());
    f.write(MSI + 12, &0x4047u16.to_le_bytes());
    f.write(MSI + 2, &0x21u16.to_le_bytes());
    f.signal(1);
    f.signal(3);
    assert_eq!(
        f.board.sent(),
        [(0xfee0_1000, 0x4045), (0xfee0_1000, 0x4047)]
    );
    // One message allowed: all vectors become it, and the data stays whole.
    f.write(MSI + 2, &0x01u16.to_le_bytes());
    f.signal(3);
    assert_eq!(f.board.sent(), [(0xfee0_1000, 0x4047)]);
}

#[test]
fn masked_msi_is_pending_and_goes_out_when_unmasked() {
    let mut f = function();
    f.command(4);
    f.write(MSI + 2, &0x21u16.to_le_bytes());
    f.write(MSI + 16, &[0b10]);
    f.signal(1);
    f.signal(1);
    assert_eq!(f.board.sent(), []);
    assert_eq!(f.config.dword(MSI + 20), 0b10);
    f.write(MSI + 16, &[0]);
    assert_eq!(f.board.sent(), [(0, 1)]);
    assert_eq!(f.config.dword(MSI + 20), 0);
}

#[test]
fn msix_capability_layout() {
    let mut f = function();
    // 6.8.2.3 to 6.8.2.5: size less one; offset and register of table and pending bits.
    assert_eq!(f.config.dword(MSIX), 0x0002_0011);
    assert_eq!(f.config.dword(MSIX + 4), 0x101);
    assert_eq!(f.config.dword(MSIX + 8), 0x201);
    f.write(MSIX, &[0xff; 12]);
    assert_eq!(f.config.dword(MSIX), 0xc002_0011);
    assert_eq!(f.config.dword(MSIX + 4), 0x101);
}

#[test]
fn msix_table_is_masked_after_reset_and_keeps_what_may_be_written() {
    let mut f = function();
    for vector in 0..3 {
        assert_eq!(f.bar(0x100 + 16 * vector + 12), 1);
    }
    f.bar_write(0x110, &[0xff; 8]);
    f.bar_write(0x118, &[0xff; 8]);
    assert_eq!(f.bar(0x110), 0xffff_fffc, "6.8.2.7: doubleword aligned");
    assert_eq!(f.bar(0x114), 0xffff_ffff);
    assert_eq!(f.bar(0x118), 0xffff_ffff);
    assert_eq!(f.bar(0x11c), 1, "6.8.2.9: 31 reserved bits");
    f.bar_write(0x200, &[0xff; 8]);
    assert_eq!(f.bar(0x200), 0, "pending bits are read-only");
    assert!(!f.interrupts.bar_read(0, 0x100, &mut [0; 4]));
    assert!(!f.interrupts.bar_read(1, 0x130, &mut [0; 4]));
    assert!(!f.interrupts.bar_write(&f.config, 1, 0x208, &[0; 4]));
    // An access over the end of the table must not panic.
    f.bar_write(0x12e, &[0xff; 8]);
}

#[test]
fn msix_sends_the_entry_or_leaves_it_pending() {
    let mut f = function();
    f.command(4);
    f.write(MSIX + 2, &0x8000u16.to_le_bytes());
    f.bar_write(0x120, &0xfee0_3000u64.to_le_bytes());
    f.bar_write(0x128, &0x55u32.to_le_bytes());
    f.signal(2);
    assert_eq!((f.board.sent(), f.bar(0x200)), (vec![], 0b100));
    f.bar_write(0x12c, &[0, 0, 0, 0]);
    assert_eq!(
        (f.board.sent(), f.bar(0x200)),
        (vec![(0xfee0_3000, 0x55)], 0)
    );
    f.signal(2);
    assert_eq!(f.board.sent(), [(0xfee0_3000, 0x55)]);
    // Function mask, then bus master off.
    f.write(MSIX + 2, &0xc000u16.to_le_bytes());
    f.signal(2);
    assert_eq!((f.board.sent(), f.bar(0x200)), (vec![], 0b100));
    f.write(MSIX + 2, &0x8000u16.to_le_bytes());
    assert_eq!(f.board.sent(), [(0xfee0_3000, 0x55)]);
    f.command(0);
    f.signal(2);
    assert_eq!(f.board.sent(), []);
    f.command(4);
    assert_eq!(f.board.sent(), [(0xfee0_3000, 0x55)]);
    f.signal(3);
    f.signal(0xffff);
    assert_eq!(f.board.sent(), [], "no such vector");
}

#[test]
fn wrong_layouts_are_refused() {
    let mut f = function();
    for vectors in [0, 3, 64] {
        assert_eq!(
            f.interrupts.add_msi(&mut f.config, vectors),
            Err(ConfigError::Vectors(vectors.into()))
        );
    }
    for layout in [
        MsixLayout {
            vectors: 0,
            ..LAYOUT
        },
        MsixLayout {
            vectors: 2049,
            ..LAYOUT
        },
        MsixLayout {
            table: 0x104,
            ..LAYOUT
        },
        MsixLayout {
            pending: 0x128,
            ..LAYOUT
        },
        MsixLayout { bar: 6, ..LAYOUT },
    ] {
        assert!(
            f.interrupts.add_msix(&mut f.config, layout).is_err(),
            "{layout:?}"
        );
    }
}
