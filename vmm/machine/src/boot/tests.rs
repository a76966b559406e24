use std::mem::offset_of;
use std::sync::Arc;

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use x86defs::cr::{cr0, cr4, efer};
use x86defs::segment::Descriptor;

use super::*;

const MIB: u64 = 1 << 20;

/// A bzImage of protocol 2.15 with the offsets of boot.rst: 2 setup sectors, then the protected-mode code.
pub(crate) fn kernel_bytes() -> Vec<u8> {
    let mut b = vec![0u8; 3 * 512];
    b.extend((0..8192u32).map(|i| (i % 251) as u8));
    let mut put = |at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[2]);
    put(0x1f4, &(8192u32 / 16).to_le_bytes());
    put(0x1fe, &[0x55, 0xaa]);
    put(0x200, &[0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x020fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x230, &(2 * MIB as u32).to_le_bytes());
    put(0x234, &[1]);
    put(0x236, &1u16.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes());
    put(0x258, &(16 * MIB).to_le_bytes());
    put(0x260, &(20 * MIB as u32).to_le_bytes());
    b
}

fn bzimage(change: impl FnOnce(&mut Vec<u8>)) -> Image {
    let mut b = kernel_bytes();
    change(&mut b);
    Image::Bytes(Arc::new(b))
}

struct Loaded {
    ram: GuestRam,
    result: Result<VcpuState, BootError>,
}

fn load_into(mib: u64, kernel: &Image, initrd: Option<&Image>, cmdline: &str) -> Loaded {
    let map = MemoryMap::new(mib * MIB);
    let ram = GuestRam::new(&map.ram_regions()).expect("memory for a test");
    let boot = BootRequest {
        kernel,
        initrd,
        modules: &[],
        cmdline,
        rsdp: Gpa(0xe_0000),
        protocol: BootProtocol::Auto,
        text_screen: false,
    };
    let result = load(&ram, &map, &boot);
    Loaded { ram, result }
}

impl Loaded {
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
    fn error(&self) -> &BootError {
        self.result.as_ref().expect_err("it is refused")
    }
}

const PAGE: u64 = 0x7000;
/// Where the header lies in `boot_params`.
const HDR: usize = offset_of!(boot_params, hdr);

#[test]
fn the_zero_page_has_every_field_where_the_kernels_header_says() {
    let initrd = Image::Bytes(Arc::new(vec![0x5a; 5000]));
    let l = load_into(64, &bzimage(|_| ()), Some(&initrd), "console=ttyS0");
    l.state();
    let hdr = |field: usize| PAGE + (HDR + field) as u64;
    assert_eq!(
        l.u64(PAGE + offset_of!(boot_params, acpi_rsdp_addr) as u64),
        0xe_0000
    );
    assert_eq!(
        l.bytes(hdr(offset_of!(setup_header, type_of_loader)), 1),
        [0xff]
    );
    assert_eq!(l.u32(hdr(offset_of!(setup_header, header))), 0x5372_6448);
    assert_eq!(
        l.u32(hdr(offset_of!(setup_header, code32_start))) as u64,
        16 * MIB
    );
    assert_eq!(
        l.u32(hdr(offset_of!(setup_header, init_size))) as u64,
        20 * MIB
    );
    assert_eq!(l.u32(hdr(offset_of!(setup_header, ramdisk_size))), 5000);
    // As high as possible: the page below the end of 64 MByte that leaves room for 5000 bytes.
    let at = u64::from(l.u32(hdr(offset_of!(setup_header, ramdisk_image))));
    assert_eq!(at, 64 * MIB - 8192);
    assert_eq!(l.bytes(at, 5000), vec![0x5a; 5000]);
    let cmdline = u64::from(l.u32(hdr(offset_of!(setup_header, cmd_line_ptr))));
    assert_eq!(l.bytes(cmdline, 14), b"console=ttyS0\0");
    assert_eq!(
        l.u32(PAGE + offset_of!(boot_params, ext_cmd_line_ptr) as u64),
        0
    );
}

#[test]
fn the_memory_map_is_in_the_zero_page() {
    let l = load_into(64, &bzimage(|_| ()), None, "");
    l.state();
    let expected = MemoryMap::new(64 * MIB).e820();
    let count = l.bytes(PAGE + offset_of!(boot_params, e820_entries) as u64, 1)[0];
    assert_eq!(usize::from(count), expected.len());
    let table = PAGE + offset_of!(boot_params, e820_table) as u64;
    assert_eq!(size_of::<boot_e820_entry>(), 20);
    for (i, e) in expected.iter().enumerate() {
        let at = table + 20 * i as u64;
        assert_eq!(l.u64(at), e.base.0);
        assert_eq!(l.u64(at + 8), e.size_bytes);
        assert_eq!(l.u32(at + 16), e.kind as u32);
    }
}

#[test]
fn the_protected_mode_code_is_loaded_and_entered_at_200h() {
    let l = load_into(64, &bzimage(|_| ()), None, "");
    let s = l.state();
    assert_eq!(s.rip, 16 * MIB + 0x200);
    let code: Vec<u8> = (0..8192u32).map(|i| (i % 251) as u8).collect();
    assert_eq!(l.bytes(16 * MIB, 8192), code);
}

#[test]
fn the_entry_state_is_that_of_the_64_bit_protocol() {
    let l = load_into(64, &bzimage(|_| ()), None, "");
    let s = l.state();
    assert_eq!(s.gpr[6], PAGE, "RSI");
    assert_eq!(s.rflags, 2, "interrupts off");
    assert_eq!(
        s.system.cr0 & 0x8000_0001,
        0x8000_0001,
        "paging and protection"
    );
    assert_eq!(s.system.cr4 & 0x20, 0x20, "PAE");
    assert_eq!(s.system.efer & 0x500, 0x500, "LME and LMA");
    let [es, cs, ss, ds, ..] = s.segments;
    assert_eq!(cs.selector.0, 0x10);
    assert_eq!([es, ss, ds].map(|r| r.selector.0), [0x18; 3]);
    assert!(cs.access.long() && cs.access.is_code());
    // The hidden parts are what the GDT's descriptors say.
    for r in [cs, ds] {
        let d = Descriptor(l.u64(s.gdtr.base + u64::from(r.selector.0)));
        assert_eq!(
            (d.base(), d.limit(), d.access()),
            (r.base, r.limit, r.access)
        );
    }
    assert!(u64::from(s.gdtr.limit) >= 0x1f);
}

#[test]
fn the_first_4_gib_are_mapped_to_themselves() {
    let l = load_into(64, &bzimage(|_| ()), None, "");
    let cr3 = l.state().system.cr3;
    for gva in [
        0u64,
        0x7123,
        16 * MIB,
        0x7fff_ffff,
        0xfee0_0000,
        0xffff_ffff,
    ] {
        let pml4e = l.u64(cr3 + 8 * (gva >> 39));
        let pdpte = l.u64((pml4e & !0xfff) + 8 * (gva >> 30 & 511));
        let pde = l.u64((pdpte & !0xfff) + 8 * (gva >> 21 & 511));
        assert_eq!(
            [pml4e & 3, pdpte & 0x83, pde & 0x83],
            [3, 3, 0x83],
            "{gva:#x}"
        );
        assert_eq!((pde & !0x1f_ffff) | (gva & 0x1f_ffff), gva);
    }
}

#[test]
fn a_relocatable_kernel_moves_down_when_memory_is_small() {
    let l = load_into(24, &bzimage(|_| ()), None, "");
    assert_eq!(l.state().rip, 2 * MIB + 0x200);
    let fixed = bzimage(|b| b[0x234] = 0);
    assert!(matches!(
        load_into(24, &fixed, None, "").error(),
        BootError::KernelTooLarge { .. }
    ));
    assert!(load_into(36, &fixed, None, "").result.is_ok());
    assert!(matches!(
        load_into(16, &bzimage(|_| ()), None, "").error(),
        BootError::KernelTooLarge { .. }
    ));
}

#[test]
fn an_initrd_that_does_not_fit_is_refused_with_what_would_be_enough() {
    let big = Image::Bytes(Arc::new(vec![1; 30 * MIB as usize]));
    let l = load_into(64, &bzimage(|_| ()), Some(&big), "");
    let text = l.error().to_string();
    assert!(
        text.contains("30 MiB") && text.contains("at least 96 MiB"),
        "{text}"
    );
    assert!(
        load_into(96, &bzimage(|_| ()), Some(&big), "")
            .result
            .is_ok()
    );
}

#[test]
fn an_initrd_stays_where_the_kernel_reaches_it() {
    let low = bzimage(|b| b[0x22c..0x230].copy_from_slice(&(48 * MIB as u32 - 1).to_le_bytes()));
    let initrd = Image::Bytes(Arc::new(vec![1; 4096]));
    let l = load_into(64, &low, Some(&initrd), "");
    l.state();
    assert_eq!(u64::from(l.u32(PAGE + 0x218)), 48 * MIB - 4096);
    let big = Image::Bytes(Arc::new(vec![1; 30 * MIB as usize]));
    assert!(matches!(
        load_into(256, &low, Some(&big), "").error(),
        BootError::InitrdBeyondKernel { .. }
    ));
}

#[test]
fn the_command_line_may_be_as_long_as_the_kernel_says() {
    let kernel = bzimage(|_| ());
    assert!(
        load_into(64, &kernel, None, &"x".repeat(2047))
            .result
            .is_ok()
    );
    assert!(matches!(
        load_into(64, &kernel, None, &"x".repeat(2048)).error(),
        BootError::CmdlineTooLong {
            length: 2048,
            limit: 2047
        }
    ));
}

fn header_error(change: impl FnOnce(&mut Vec<u8>)) -> HeaderError {
    let mut file = kernel_bytes();
    change(&mut file);
    let size = file.len() as u64;
    SetupHeader::parse(&file, size).expect_err("it is refused")
}

#[test]
fn files_that_are_no_kernel_are_refused_by_name() {
    assert_eq!(header_error(Vec::clear), HeaderError::NoSignature);
    assert_eq!(header_error(|b| b[0x202] = b'X'), HeaderError::NoSignature);
    assert_eq!(
        header_error(|b| b[0x206..0x208].copy_from_slice(&[2, 2])),
        HeaderError::TooOld(0x0202)
    );
    assert_eq!(header_error(|b| b[0x211] = 0), HeaderError::LoadedLow);
    assert!(matches!(
        header_error(|b| b.truncate(4096)),
        HeaderError::Truncated {
            have_bytes: 4096,
            need_bytes: 9728
        }
    ));
    assert!(matches!(
        header_error(|b| b[0x258..0x260].fill(0)),
        HeaderError::Broken(_)
    ));
    assert!(HeaderError::TooOld(0x0202).to_string().contains("2.02"));
}

#[test]
fn the_last_paragraph_need_not_be_whole() {
    let short = |bytes: usize| {
        let file = bzimage(|b| b.truncate(b.len() - bytes));
        load_into(64, &file, None, "").result.is_ok()
    };
    assert!(short(15));
    assert!(!short(16));
}

#[test]
fn a_kernel_without_64_bit_entry_is_entered_in_protected_mode() {
    for narrow in [
        bzimage(|b| b[0x236] = 0),
        // A protocol that does not know xloadflags.
        bzimage(|b| b[0x206..0x208].copy_from_slice(&[0x0b, 2])),
    ] {
        let l = load_into(64, &narrow, None, "");
        let s = l.state();
        assert_eq!(s.rip, 16 * MIB, "code32_start");
        assert_eq!(s.gpr[6], PAGE, "ESI");
        assert_eq!([s.gpr[3], s.gpr[5], s.gpr[7]], [0; 3], "EBX, EBP, EDI");
        assert_eq!(s.rflags & 1 << 9, 0, "IF");
        assert_eq!(s.system.cr0 & (cr0::PE | cr0::PG), cr0::PE);
        assert_eq!(s.system.cr4 & cr4::PAE, 0);
        assert_eq!(s.system.efer & efer::LME, 0);
        let [es, cs, ss, ds, ..] = s.segments;
        assert_eq!(cs.selector.0, 0x10);
        assert_eq!([es, ss, ds].map(|r| r.selector.0), [0x18; 3]);
        assert!(cs.access.default_big() && !cs.access.long());
        assert_eq!((cs.base, cs.limit), (0, 0xffff_ffff));
        let d = Descriptor(l.u64(s.gdtr.base + 0x10));
        assert_eq!(
            (d.base(), d.limit(), d.access()),
            (0, 0xffff_ffff, cs.access)
        );
    }
}

#[test]
fn fields_newer_than_the_protocol_are_not_looked_at() {
    // Protocol 2.04: no relocation, no cmdline_size, no pref_address, no init_size.
    let old = bzimage(|b| {
        b[0x206..0x208].copy_from_slice(&[4, 2]);
        b[0x234..0x280].fill(0xff);
    });
    let l = load_into(64, &old, None, &"x".repeat(255));
    assert_eq!(l.state().rip, MIB);
    assert!(matches!(
        load_into(64, &old, None, &"x".repeat(256)).error(),
        BootError::CmdlineTooLong { limit: 255, .. }
    ));
}

#[test]
fn a_protocol_asked_for_must_fit_the_file() {
    use BootProtocol::{Auto, Linux32, Linux64, Multiboot, Pvh};
    let long = kernel_bytes();
    let mut narrow = kernel_bytes();
    narrow[0x236] = 0;
    assert_eq!(identify(&long, Auto), Ok(Linux64));
    assert_eq!(identify(&long, Linux32), Ok(Linux32));
    assert_eq!(identify(&narrow, Auto), Ok(Linux32));
    assert_eq!(
        identify(&narrow, Linux64),
        Err(ImageError::Linux(HeaderError::No64BitEntry))
    );
    for other in [Multiboot, Pvh] {
        assert_eq!(identify(&long, other), Err(ImageError::Protocol(other)));
        assert_eq!(identify(b"x", other), Err(ImageError::Protocol(other)));
    }
    assert_eq!(identify(b"hello", Auto), Err(ImageError::Unknown));
}

#[test]
fn a_header_full_of_ones_is_refused_without_overflow() {
    let hostile = bzimage(|b| b[0x22c..0x280].fill(0xff));
    assert!(load_into(64, &hostile, None, "").result.is_err());
    let hostile = bzimage(|b| {
        b[0x260..0x264].fill(0xff);
        b[0x258..0x260].copy_from_slice(&(!0xfffu64).to_le_bytes());
    });
    assert!(load_into(64, &hostile, None, "").result.is_err());
}

#[test]
fn a_missing_file_is_an_error_that_names_it() {
    let missing = Image::File("/nonexistent/vmlinuz".into());
    let text = load_into(64, &missing, None, "").error().to_string();
    assert!(
        text.contains("cannot read the kernel /nonexistent/vmlinuz"),
        "{text}"
    );
    let folder = Image::File(std::env::temp_dir());
    assert!(
        load_into(64, &folder, None, "")
            .error()
            .to_string()
            .contains("not a regular file")
    );
}
