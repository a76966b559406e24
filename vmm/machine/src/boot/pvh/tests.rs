use std::sync::Arc;

use guestmem::Gpa;

use super::*;
use crate::boot::elf::tests::{Maker, note};
use crate::boot::{BootProtocol, load};
use crate::config::{Image, Module};

const MIB: u64 = 1 << 20;

fn kernel() -> Maker {
    let mut maker = Maker::new(true);
    maker.notes = note(b"Xen", 18, &0x10_0020u32.to_le_bytes());
    maker
}

struct Run {
    ram: GuestRam,
    result: Result<VcpuState, BootError>,
}

fn boot(maker: &Maker, initrd: Option<Vec<u8>>, modules: &[Module], cmdline: &str) -> Run {
    let map = MemoryMap::new(16 * MIB);
    let ram = GuestRam::new(&map.ram_regions()).expect("memory for a test");
    let kernel = Image::Bytes(Arc::new(maker.file()));
    let initrd = initrd.map(|b| Image::Bytes(Arc::new(b)));
    let request = BootRequest {
        kernel: &kernel,
        initrd: initrd.as_ref(),
        modules,
        cmdline,
        rsdp: Gpa(0xe_0000),
        protocol: BootProtocol::Auto,
        text_screen: false,
    };
    let result = load(&ram, &map, &request);
    Run { ram, result }
}

impl Run {
    fn bytes(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut b = vec![0; len];
        self.ram.read(Gpa(gpa), &mut b).expect("inside RAM");
        b
    }
    fn u32(&self, gpa: u64) -> u32 {
        u32::from_le_bytes(self.bytes(gpa, 4).try_into().expect("4 bytes"))
    }
    fn u64(&self, gpa: u64) -> u64 {
        u64::from_le_bytes(self.bytes(gpa, 8).try_into().expect("8 bytes"))
    }
    fn state(&self) -> &VcpuState {
        self.result.as_ref().expect("it boots")
    }
}

/// pvh.pandoc: "The following state is guaranteed".
#[test]
fn the_entry_state_is_that_of_the_abi() {
    let run = boot(&kernel(), None, &[], "");
    let s = run.state();
    assert_eq!(s.rip, 0x10_0020);
    assert_eq!(s.system.cr0 & 0x8000_0001, 1, "PE set, PG clear");
    assert_eq!(s.system.cr4, 0);
    let [es, cs, ss, ds, ..] = s.segments;
    for (segment, access) in [(cs, 0xb), (es, 3), (ss, 3), (ds, 3)] {
        assert_eq!((segment.base, segment.limit), (0, 0xffff_ffff));
        assert_eq!(segment.access.segment_type(), access);
        assert!(segment.access.default_big() && !segment.access.long());
    }
    assert_eq!((s.tr.base, s.tr.limit), (0, 0x67));
    assert_eq!(s.tr.access.segment_type(), 11, "a busy 32-bit TSS");
    // VM, IF and TF.
    assert_eq!(s.rflags & (1 << 17 | 1 << 9 | 1 << 8), 0);
}

/// start_info.h.
#[test]
fn the_start_info_has_every_field_in_its_place() {
    let module = Module {
        image: Image::Bytes(Arc::new(b"second".to_vec())),
        text: "second with arguments".into(),
    };
    let run = boot(
        &kernel(),
        Some(b"first".to_vec()),
        &[module],
        "console=ttyS0",
    );
    let info = run.state().gpr[3];
    assert_eq!(run.u32(info), 0x336e_c578);
    assert_eq!(run.u32(info + 4), 1, "version");
    assert_eq!(run.u32(info + 8), 0, "flags");
    assert_eq!(run.u32(info + 12), 2, "modules");
    assert_eq!(run.bytes(run.u64(info + 24), 14), b"console=ttyS0\0");
    assert_eq!(run.u64(info + 32), 0xe_0000, "RSDP");
    let list = run.u64(info + 16);
    let texts: [&[u8]; 2] = [b"initrd\0", b"second with arguments\0"];
    for (i, (bytes, text)) in [&b"first"[..], b"second"]
        .into_iter()
        .zip(texts)
        .enumerate()
    {
        let entry = list + 32 * i as u64;
        assert_eq!(run.u64(entry) % 4096, 0);
        assert_eq!(run.u64(entry + 8), bytes.len() as u64);
        assert_eq!(run.bytes(run.u64(entry), bytes.len()), bytes);
        assert_eq!(run.bytes(run.u64(entry + 16), text.len()), text);
        assert_eq!(run.u64(entry + 24), 0);
    }
    let expected = MemoryMap::new(16 * MIB).e820();
    assert_eq!(run.u32(info + 48) as usize, expected.len());
    for (i, e) in expected.iter().enumerate() {
        let at = run.u64(info + 40) + 24 * i as u64;
        assert_eq!((run.u64(at), run.u64(at + 8)), (e.base.0, e.size_bytes));
        assert_eq!(run.u32(at + 16), e.kind as u32);
    }
}

#[test]
fn segments_are_where_they_belong_and_nothing_lies_on_them() {
    let mut maker = kernel();
    // All of conventional memory but the last page.
    maker
        .segments
        .push((0x1000, 0x1000, vec![0xcc; 0x1000], 0x9_d000));
    let run = boot(&maker, None, &[], &"x".repeat(1000));
    let info = run.state().gpr[3];
    assert_eq!(run.bytes(0x10_0000, 64), (0..64).collect::<Vec<u8>>());
    assert_eq!(run.bytes(0x1000, 0x1000), vec![0xcc; 0x1000]);
    assert!(info >= 0x9_e000 && run.u64(info + 24) >= 0x9_e000);
}

#[test]
fn what_does_not_fit_is_refused() {
    let refused = |change: fn(&mut Maker)| {
        let mut maker = kernel();
        change(&mut maker);
        boot(&maker, None, &[], "")
            .result
            .expect_err("it is refused")
            .to_string()
    };
    let outside = "which is not free RAM";
    assert!(refused(|m| m.segments[0].1 = 16 * MIB).contains(outside));
    assert!(refused(|m| m.segments[0].1 = 0xa_0000).contains(outside));
    assert!(refused(|m| m.segments[0].1 = 0).contains(outside));
    assert!(refused(|m| m.segments.push(m.segments[0].clone())).contains(outside));
    assert!(refused(|m| m.segments[0].3 = 1 << 40).contains(outside));
    let large = boot(&kernel(), Some(vec![0; 16 << 20]), &[], "");
    let text = large.result.expect_err("it is refused").to_string();
    assert!(text.contains("does not fit beside the kernel"), "{text}");
    let long = boot(&kernel(), None, &[], &"x".repeat(20 << 20));
    assert!(matches!(
        long.result,
        Err(BootError::NoRoomForInformation(_))
    ));
}

#[test]
fn an_entry_outside_the_segments_is_refused() {
    let mut maker = kernel();
    maker.segments[0].1 += 0x10_0000;
    let refusal = boot(&maker, None, &[], "").result;
    assert!(matches!(
        refusal,
        Err(BootError::NotAKernel {
            source: ImageError::EntryOutside(0x10_0020),
            ..
        })
    ));
}
