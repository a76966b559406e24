//! EPT against chapter 29 of volume 3: what is translated, violations and their qualifications (Table 28-7),
//! misconfigurations, accessed and dirty flags, large pages, invalidation, VPIDs.

#![no_std]
#![no_main]

mod caching;
mod flags;
mod misconfigurations;
mod violations;

use runtime::memory::{page, pages, read, write};
use runtime::vmx::{self, Vm, add, field, may, msr, secondary, set};
use runtime::{address, cpu, section, skip, snippet};

runtime::guest!("vmx-ept", run);

/// Entry bits (Tables 29-1 to 29-6).
pub const READ: u64 = 1;
/// Writes allowed.
pub const WRITE: u64 = 2;
/// Fetches allowed.
pub const EXECUTE: u64 = 4;
/// All three.
pub const ALL: u64 = 7;
/// Write-back, in an entry that maps a page.
pub const WB: u64 = 6 << 3;
/// Maps a page.
pub const LEAF: u64 = 1 << 7;
/// Accessed.
pub const ACCESSED: u64 = 1 << 8;
/// Dirty.
pub const DIRTY: u64 = 1 << 9;

snippet! {
    p_read: "mov rax, [rdi]", "vmcall";
    p_write: "mov [rdi], rdi", "vmcall";
    p_modify: "add qword ptr [rdi], 1", "vmcall";
    p_end: "vmcall";
}

fn run() {
    if !cpu::has(1, 2, 5) || !may(msr::SECONDARY, secondary::EPT) {
        skip("EPT");
        runtime::record(true);
        return;
    }
    vmx::turn_on();
    let vm = &mut Vm::new();
    section("29.3.2 translation");
    let ept = Ept::identity();
    ept.enable(0);
    let memory = page();
    write(memory, 0x1234);
    let exit = vm.run(address!(p_read), memory);
    runtime::check_eq!(
        (exit.reason, vm.gpr[0]),
        (18, 0x1234),
        "through an identity"
    );
    violations::run(vm, &ept);
    misconfigurations::run(vm, &ept);
    flags::run(vm, &ept);
    caching::run(vm, &ept);
}

/// EPT paging structures: the first 4 GiB to themselves, the first 32 MiB by 4-KiB pages.
pub struct Ept {
    /// The root.
    pub root: u64,
}

impl Ept {
    /// Makes them.
    pub fn identity() -> Self {
        let ept = Self { root: page() };
        for i in 16..2048u64 {
            ept.map(i << 21, i << 21, 2, ALL | if i < 1536 { WB } else { 0 });
        }
        for i in 0..8192u64 {
            ept.map(i << 12, i << 12, 1, ALL | WB);
        }
        ept
    }

    /// EPTP: write-back, four levels, and `bits`.
    pub fn pointer(&self, bits: u64) -> u64 {
        self.root | 6 | 3 << 3 | bits
    }

    /// Turns EPT on in the current VMCS.
    pub fn enable(&self, bits: u64) {
        add(field::SECONDARY_CONTROLS, secondary::EPT);
        set(field::EPTP, self.pointer(bits));
        self.invalidate();
    }

    /// INVEPT, all contexts.
    pub fn invalidate(&self) {
        vmx::invept(2, 0, 0);
    }

    /// Address of the entry of `level` (4 to 1) for a guest-physical address.
    pub fn entry(&self, gpa: u64, level: u32) -> u64 {
        let mut table = self.root;
        for l in (level + 1..=4).rev() {
            let slot = table + 8 * (gpa >> (12 + 9 * (l - 1)) & 511);
            if read(slot) & ALL == 0 {
                write(slot, page() | ALL);
            }
            table = read(slot) & 0x000f_ffff_ffff_f000;
        }
        table + 8 * (gpa >> (12 + 9 * (level - 1)) & 511)
    }

    /// Maps a guest-physical page.
    pub fn map(&self, gpa: u64, physical: u64, level: u32, bits: u64) {
        let leaf = if level > 1 { LEAF } else { 0 };
        write(self.entry(gpa, level), physical | bits | leaf);
    }

    /// Runs `body` with the entry for `gpa` of `level` being `value`.
    pub fn with<T>(&self, gpa: u64, level: u32, value: u64, body: impl FnOnce() -> T) -> T {
        let slot = self.entry(gpa, level);
        let old = read(slot);
        write(slot, value);
        self.invalidate();
        let result = body();
        write(slot, old);
        self.invalidate();
        result
    }
}

/// Linear address, under the guest's own tables, of guest-physical page `gpa`; a fresh place each time.
pub fn linear(gpa: u64) -> u64 {
    use core::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(runtime::paging::TEST_BASE + (20 << 30));
    let at = NEXT.fetch_add(4096, Ordering::Relaxed);
    let flags = runtime::paging::P | runtime::paging::W;
    runtime::paging::map(runtime::paging::root(), at, gpa, 1, flags);
    cpu::invlpg(at);
    at
}

/// `count` pages.
pub fn memory(count: u64) -> u64 {
    pages(count, 4096)
}
