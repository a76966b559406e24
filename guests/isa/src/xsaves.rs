//! XSAVES and XRSTORS, IA32_XSS, and the compacted format.

use core::arch::asm;

use runtime::cpu::{self, cr4};
use runtime::memory::{page, read, write};
use runtime::paging::user_address;
use runtime::trap::{self, raised_at};
use runtime::{address, check, check_eq, section, skip, snippet};

const XSS: u32 = 0xda0;

snippet! {
    x_saves: "mov eax, 7", "xor edx, edx", "xsaves64 [rdi]", "ret";
    x_rstors: "mov eax, 7", "xor edx, edx", "xrstors64 [rdi]", "ret";
    x_savec: "mov eax, 7", "xor edx, edx", "xsavec64 [rdi]", "ret";
    x_user: "xsaves64 [rdi]", "int 0x80";
    x_set: "mov ecx, 0", "mov eax, 7", "xor edx, edx", "xsetbv", "ret";
    x_xss: "mov ecx, 0xda0", "mov eax, edi", "xor edx, edx", "wrmsr", "ret";
    x_fill: "mov rax, 0x1122334455667788", "movq xmm5, rax", "ret";
    x_clear: "xorps xmm5, xmm5", "ret";
}

fn xmm5() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("movq {}, xmm5", out(reg) value, options(nomem, nostack)) };
    value
}

pub fn run() {
    section("volume 1, 13.11 and 13.12: XSAVES, XRSTORS");
    if cpu::cpuid(0xd, 1)[0] & 8 == 0 {
        skip("XSAVES");
        return;
    }
    let c4 = cpu::read_cr4();
    let area = page();
    cpu::write_cr4(c4 & !cr4::OSXSAVE);
    check_eq!(
        raised_at(address!(x_saves), area).what(),
        (6, 0),
        "without CR4.OSXSAVE"
    );
    cpu::write_cr4(c4 | cr4::OSXSAVE);
    x_set(0);
    check_eq!(cpu::read_msr(XSS), 0, "IA32_XSS after RESET");
    let supported = cpu::cpuid(0xd, 1)[2];
    check_eq!(
        raised_at(address!(x_xss), u64::from(!supported)).what(),
        (13, 0),
        "a component that is not there in IA32_XSS"
    );
    let stack = user_address(page() + 4096);
    let got = trap::user(user_address(address!(x_user)), user_address(area), stack, 0);
    check_eq!(got.what(), (13, 0), "at CPL 3");
    check_eq!(
        raised_at(address!(x_saves), area + 8).what(),
        (13, 0),
        "alignment"
    );

    // The size CPUID tells is that of the enabled components.
    check_eq!(
        cpu::cpuid(0xd, 1)[1],
        576 + 256,
        "size of the compacted area"
    );
    x_fill(0);
    x_saves(area);
    check_eq!(read(area + 520), 1 << 63 | 7, "XCOMP_BV");
    check!(read(area + 512) & 2 != 0, "SSE is in use");
    check_eq!(
        read(area + 160 + 5 * 16),
        0x1122_3344_5566_7788,
        "XMM5 in the area"
    );
    x_clear(0);
    x_rstors(area);
    check_eq!(xmm5(), 0x1122_3344_5566_7788, "XMM5 restored");
    // What XSTATE_BV does not name gets its initial value.
    let bv = read(area + 512);
    write(area + 512, bv & !2);
    x_rstors(area);
    check_eq!(xmm5(), 0, "XMM5 initialized");

    for (at, value, what) in [
        (520, 0, "the standard format"),
        (520, 1 << 63 | 7 | 1 << 8, "a component that is not enabled"),
        (512, 1 << 10, "XSTATE_BV beyond XCOMP_BV"),
        (528, 1, "the reserved part of the header"),
    ] {
        x_savec(area);
        let old = read(area + at);
        write(area + at, value);
        check_eq!(
            raised_at(address!(x_rstors), area).what(),
            (13, 0),
            "{what}"
        );
        write(area + at, old);
    }
    cpu::write_cr4(c4);
}
