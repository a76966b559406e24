//! RDRAND, RDSEED, RDPID, RDTSCP, and the instructions that flush a cache line (volume 2); XSAVE, XSAVEOPT and XSAVEC
//! (volume 1, 13.7 to 13.10).

use core::arch::asm;

use runtime::cpu::{self, cr4};
use runtime::memory::{page, read, write};
use runtime::paging::{A, D, P, TEST_BASE, U, entry, map, root, user_address};
use runtime::trap::{self, raised_at};
use runtime::{address, check, check_eq, section, skip, snippet};

const TSC_AUX: u32 = 0xc000_0103;
const MAPPED: u64 = TEST_BASE + (40 << 21);

snippet! {
    f_clflush: "clflush [rdi]", "ret";
    f_clflushopt: "clflushopt [rdi]", "ret";
    f_clwb: "clwb [rdi]", "ret";
    f_lock_clflush: ".byte 0xf0", "clflush [rdi]", "ret";
    f_lock_clflushopt: ".byte 0xf0", "clflushopt [rdi]", "ret";
    f_lock_clwb: ".byte 0xf0", "clwb [rdi]", "ret";
    f_user_clflush: "clflush [rdi]", "int 0x80";
    f_user_clflushopt: "clflushopt [rdi]", "int 0x80";
    f_user_clwb: "clwb [rdi]", "int 0x80";
    q_init: "xor ecx, ecx", "mov eax, 7", "xor edx, edx", "xsetbv", "ret";
    q_xsave: "mov eax, 2", "xor edx, edx", "xsave64 [rdi]", "ret";
    q_xsaveopt: "mov eax, 2", "xor edx, edx", "xsaveopt64 [rdi]", "ret";
    q_xsavec: "mov eax, 6", "xor edx, edx", "xsavec64 [rdi]", "ret";
    q_xrstor: "mov eax, 6", "xor edx, edx", "xrstor64 [rdi]", "ret";
    q_set: "movq xmm6, rdi", "ret";
    q_set_high: "movq xmm7, rdi", "vinsertf128 ymm6, ymm6, xmm7, 1", "ret";
    q_get: "movq rax, xmm6", "ret";
    q_get_high: "vextractf128 xmm7, ymm6, 1", "movq rax, xmm7", "ret";
}

pub fn run() {
    random();
    processor_id();
    flushes();
    saves();
}

macro_rules! draw {
    ($instruction:literal) => {{
        let (value, flags): (u64, u64);
        // SAFETY: changes registers.
        unsafe {
            asm!(
                // OF by 7Fh + 1, then SF, ZF, AF, PF and CF.
                "mov al, 0x7f", "inc al", "mov ah, 0xd5", "sahf",
                "mov rdx, -1", $instruction, "pushfq", "pop rcx",
                out("rax") _, out("rdx") value, out("rcx") flags,
            );
        }
        (value, flags & 0x8d5)
    }};
}

/// A number may fail to come (CF clear), then the register is zero; ten tries are to be enough (volume 1, 7.3.17.1).
fn drawn(draw: impl Fn() -> (u64, u64), name: &str) -> u64 {
    for _ in 0..10_000 {
        let (value, flags) = draw();
        if flags == 1 {
            return value;
        }
        if flags != 0 {
            break;
        }
    }
    check!(
        false,
        "{name}: a number, with CF set and OF, SF, ZF, AF, PF clear"
    );
    0
}

fn random() {
    section("vol 2, RDRAND and RDSEED");
    if cpu::has(1, 2, 30) {
        let all: [u64; 16] = core::array::from_fn(|_| drawn(|| draw!("rdrand rdx"), "RDRAND"));
        let different = (0..16).all(|i| (0..i).all(|j| all[i] != all[j]));
        check!(different, "RDRAND: sixteen different numbers");
        let low = drawn(|| draw!("rdrand edx"), "RDRAND, 32 bits");
        check_eq!(low >> 32, 0, "RDRAND, 32 bits: the upper half");
        let low = drawn(|| draw!("rdrand dx"), "RDRAND, 16 bits");
        check_eq!(low >> 16, u64::MAX >> 16, "RDRAND, 16 bits: the rest stays");
    } else {
        skip("RDRAND");
    }
    if cpu::has(7, 1, 18) {
        let all: [u64; 16] = core::array::from_fn(|_| drawn(|| draw!("rdseed rdx"), "RDSEED"));
        let different = (0..16).all(|i| (0..i).all(|j| all[i] != all[j]));
        check!(different, "RDSEED: sixteen different numbers");
    } else {
        skip("RDSEED");
    }
}

fn processor_id() {
    section("vol 2, RDPID and RDTSCP");
    if !cpu::has(0x8000_0001, 3, 27) {
        skip("RDTSCP");
        return;
    }
    let old = cpu::read_msr(TSC_AUX);
    for id in [0x5a5a_1234u64, 0, 0xffff_ffff] {
        cpu::write_msr(TSC_AUX, id);
        let aux: u64;
        // SAFETY: changes registers.
        unsafe { asm!("mov rcx, -1", "rdtscp", out("rax") _, out("rdx") _, out("rcx") aux) };
        check_eq!(aux, id, "RDTSCP: ECX");
        if cpu::has(7, 2, 22) {
            let aux: u64;
            // SAFETY: as above.
            unsafe { asm!("mov rax, -1", "rdpid rax", out("rax") aux) };
            check_eq!(aux, id, "RDPID");
        } else {
            skip("RDPID");
        }
    }
    cpu::write_msr(TSC_AUX, old);
}

fn flushes() {
    section("vol 2, CLFLUSH, CLFLUSHOPT, CLWB");
    let all = [
        (
            cpu::has(1, 3, 19),
            address!(f_clflush),
            address!(f_lock_clflush),
            address!(f_user_clflush),
            "CLFLUSH",
        ),
        (
            cpu::has(7, 1, 23),
            address!(f_clflushopt),
            address!(f_lock_clflushopt),
            address!(f_user_clflushopt),
            "CLFLUSHOPT",
        ),
        (
            cpu::has(7, 1, 24),
            address!(f_clwb),
            address!(f_lock_clwb),
            address!(f_user_clwb),
            "CLWB",
        ),
    ];
    let frame = page();
    let stack = user_address(page() + 4096);
    for (there, flush, lock, user, name) in all {
        if !there {
            skip(name);
            continue;
        }
        // As a load of a byte: rights, faults and flags.
        map(root(), MAPPED, frame, 1, P);
        cpu::invlpg(MAPPED);
        write(frame, 0x77);
        check_eq!(raised_at(flush, MAPPED).what(), (256, 0), "{name}");
        let flags = read(entry(root(), MAPPED, 1)) & (A | D);
        check_eq!(flags, A, "{name}: accessed, not dirty");
        check_eq!(read(MAPPED), 0x77, "{name}: the content stays");
        check_eq!(raised_at(lock, MAPPED).what(), (6, 0), "LOCK {name}");
        check_eq!(
            trap::user(user_address(user), MAPPED, stack, 0).what(),
            (14, 5),
            "{name} of a supervisor page at CPL 3"
        );
        map(root(), MAPPED, frame, 1, P | U);
        cpu::invlpg(MAPPED);
        check_eq!(
            trap::user(user_address(user), MAPPED, stack, 0).what(),
            (0x80, 0),
            "{name} of a user page at CPL 3"
        );
        map(root(), MAPPED, frame, 1, 0);
        cpu::invlpg(MAPPED);
        check_eq!(
            raised_at(flush, MAPPED).what(),
            (14, 0),
            "{name} of a page not present"
        );
        check_eq!(
            raised_at(flush, 1 << 47).what(),
            (13, 0),
            "{name}, not canonical"
        );
    }
}

fn saves() {
    section("vol 1, 13.7 to 13.10 XSAVE, XSAVEOPT, XSAVEC, XRSTOR");
    let kinds = cpu::cpuid(0xd, 1)[0];
    if !cpu::has(1, 2, 26) || !cpu::has(1, 2, 28) || kinds & 3 != 3 {
        skip("XSAVE, AVX, XSAVEOPT, XSAVEC");
        return;
    }
    let old = cpu::read_cr4();
    cpu::write_cr4(old | cr4::OSXSAVE);
    q_init(0);
    let size = cpu::cpuid(0xd, 2);
    check_eq!(
        (size[0], size[1]),
        (256, 576),
        "13.4.3: AVX in the standard format"
    );
    let (area, other) = (page(), page());
    for (save, name) in [
        (address!(q_xsave), "XSAVE"),
        (address!(q_xsaveopt), "XSAVEOPT"),
    ] {
        // Only SSE is asked for: the bits of the others stay, and so does what is theirs.
        write(area + 512, 1 | 4);
        write(area + 520, 0);
        write(area + 32, 0x1111);
        write(area + 576, 0x2222);
        q_set(0x6666);
        check_eq!(raised_at(save, area).what(), (256, 0), "{name}");
        check_eq!(
            read(area + 512),
            7,
            "13.7: {name}: XSTATE_BV of what is asked for only"
        );
        check_eq!(read(area + 160 + 96), 0x6666, "{name}: XMM6");
        check_eq!(read(area + 32), 0x1111, "{name}: ST0 is left alone");
        check_eq!(read(area + 576), 0x2222, "{name}: YMM is left alone");
        check_eq!(
            raised_at(save, area + 32).what(),
            (13, 0),
            "13.3: {name}: alignment"
        );
    }
    // What was changed since XRSTOR is written, and so is all in another area (13.9).
    q_xrstor(area);
    q_set(0x7777);
    q_xsaveopt(area);
    check_eq!(
        read(area + 160 + 96),
        0x7777,
        "XSAVEOPT: changed since XRSTOR"
    );
    q_xrstor(area);
    q_xsaveopt(other);
    check_eq!(read(other + 160 + 96), 0x7777, "XSAVEOPT: another area");
    // XSAVEC: SSE and AVX without x87; the header is its own (13.10).
    q_set(0x8888);
    q_set_high(0x9999);
    write(area + 512, u64::MAX);
    q_xsavec(area);
    check_eq!(
        read(area + 512),
        6,
        "XSAVEC: XSTATE_BV is written as a whole"
    );
    check_eq!(read(area + 520), 1 << 63 | 6, "XSAVEC: XCOMP_BV");
    check_eq!(read(area + 160 + 96), 0x8888, "XSAVEC: XMM6");
    check_eq!(read(area + 576 + 96), 0x9999, "XSAVEC: YMM6");
    q_set(0);
    q_set_high(0);
    q_xrstor(area);
    check_eq!(
        (q_get(0), q_get_high(0)),
        (0x8888, 0x9999),
        "13.8.2: XRSTOR of the compacted format"
    );
    write(area + 512, 2);
    q_xrstor(area);
    check_eq!(
        (q_get(0), q_get_high(0)),
        (0x8888, 0),
        "13.8: what XSTATE_BV does not name is initialized"
    );
    write(area + 520, 6);
    check_eq!(
        raised_at(address!(q_xrstor), area).what(),
        (13, 0),
        "13.8.1: XCOMP_BV in the standard format"
    );
    cpu::write_cr4(old);
}
