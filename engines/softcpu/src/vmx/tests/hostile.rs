//! Whatever a hypervisor writes into its VMCS and its memory, the monitor stands.

use x86defs::vmx::VmcsField as F;

use super::rig::*;

/// A small generator (xorshift64*): the cases are the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// A value that has a chance to pass a check: one bit changed, something special, or anything.
    fn near(&mut self, old: u64) -> u64 {
        match self.below(4) {
            0 | 1 => old ^ 1 << self.below(64),
            2 => [
                0,
                1,
                u64::MAX,
                EPTP,
                GUEST_CODE,
                VMCS,
                VIRTUAL_APIC,
                RAM_BYTES - 8,
            ][self.below(8)],
            _ => self.next(),
        }
    }
}

#[test]
fn random_vmcs_contents_never_panic() {
    let mut random = Random(0x6e65_7374);
    let mut entered = 0;
    for _ in 0..1500 {
        let mut r = Rig::root();
        for _ in 0..=random.below(6) {
            let f = F::ALL[random.below(F::COUNT)];
            let old = r.get(f);
            let new = random.near(old);
            r.set(f, new);
        }
        let code = random.next().to_le_bytes();
        r.bytes(GUEST_CODE, &code);
        r.bytes(EXIT_RIP, &[0xeb, 0xfe]);
        r.enter();
        entered += usize::from(r.cpu().vmx.in_guest);
        for _ in 0..8 {
            if r.runner.single_step().is_some() {
                break;
            }
        }
    }
    assert!(
        entered > 100,
        "the cases are too wild to test anything: {entered} entries"
    );
}

#[test]
fn random_vmcs_regions_never_panic() {
    // The region is the guest's memory: VMPTRLD takes what stands there.
    let mut random = Random(0x1e57);
    for _ in 0..50 {
        let mut r = Rig::root();
        for at in (OTHER_VMCS + 8..OTHER_VMCS + 4096).step_by(8) {
            r.set_qword(at, random.next());
        }
        r.memory_operand(&[0x0f, 0xc7, 0x30], OTHER_VMCS);
        assert_eq!(r.outcome(), Outcome::Succeed);
        r.host_instruction(&[0x0f, 0x01, 0xc2]);
        r.host_instruction(&[0x0f, 0x01, 0xc3]);
    }
}
