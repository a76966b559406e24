//! What CPUID answers: tables of leaves, the models that make them, and the fields that follow a vCPU's
//! own state.
//!
//! A table holds what is the same for all vCPUs of a VM. What depends on the asking vCPU (APIC ids, OSXSAVE,
//! XSAVE sizes, SYSCALL outside 64-bit mode) is put in by [`CpuidTable::for_vcpu`], so that every engine
//! answers alike.

mod amd;
pub mod feature;
mod host;
mod intel;
mod leaves;
mod model;
mod timing;
mod words;

#[cfg(test)]
mod tests;

pub use amd::PATCH_LEVEL;
pub use host::HostVector;
pub use intel::{MICROCODE_REVISION, MISC_ENABLE_RESET, arch_capabilities};
pub use model::{CpuModel, LackingHost, ModelConfig, Vendor, model};
pub use timing::{TscRatio, timing_leaves, tsc_ratio};
pub use words::{NAMES, Named, Place};

use feature::{ext1_edx, leaf1_ecx, leaf1_edx, leaf7_ecx, leafd1_eax, xstate};

/// Width of a guest-physical address in bits: `CPUID.80000008H:EAX[7:0]`, MAXPHYADDR.
pub const MAXPHYADDR: u32 = 40;

/// Width of a linear address in bits: `CPUID.80000008H:EAX[15:8]`.
pub const LINEAR_BITS: u32 = 48;

/// What leaf 40000000h returns in EBX, ECX and EDX under the software CPU.
pub const HYPERVISOR_SIGNATURE: &[u8; 12] = b"NestlingNest";

/// EAX, EBX, ECX, EDX of one leaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidResult {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// One leaf; `subleaf` is `None` where ECX does not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidLeaf {
    /// EAX in.
    pub leaf: u32,
    /// ECX in.
    pub subleaf: Option<u32>,
    /// The answer, without what [`CpuidTable::for_vcpu`] fills in.
    pub result: CpuidResult,
}

/// The answers of a CPU model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuidTable {
    /// Sorted by leaf and subleaf.
    pub leaves: Vec<CpuidLeaf>,
    /// It is a named model's, the same on every host: an engine that cannot give all of it must refuse instead of
    /// leaving features out.
    pub exact: bool,
}

/// The state of the asking vCPU that CPUID answers depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuFields {
    /// Its (initial) APIC id.
    pub apic_id: u32,
    /// `IA32_APIC_BASE[11]`: the APIC is globally enabled.
    pub apic_enabled: bool,
    /// CR4.OSXSAVE.
    pub osxsave: bool,
    /// CR4.PKE.
    pub pke: bool,
    /// MONITOR is not disabled (`IA32_MISC_ENABLE[18]`).
    pub monitor: bool,
    /// XCR0.
    pub xcr0: u64,
    /// IA32_XSS.
    pub xss: u64,
    /// It is in 64-bit mode (IA-32e mode with CS.L set).
    pub mode64: bool,
}

impl CpuidTable {
    /// The stored answer for `(leaf, subleaf)`, if the model has it.
    #[must_use]
    pub fn get(&self, leaf: u32, subleaf: u32) -> Option<CpuidResult> {
        let start = self.leaves.partition_point(|l| l.leaf < leaf);
        self.leaves[start..]
            .iter()
            .take_while(|l| l.leaf == leaf)
            .find(|l| l.subleaf.is_none_or(|s| s == subleaf))
            .map(|l| l.result)
    }

    /// Puts a leaf in its place, over one that is there.
    pub fn set(&mut self, leaf: u32, subleaf: Option<u32>, result: CpuidResult) {
        let entry = CpuidLeaf {
            leaf,
            subleaf,
            result,
        };
        match self
            .leaves
            .binary_search_by_key(&(leaf, subleaf), |l| (l.leaf, l.subleaf))
        {
            Ok(at) => self.leaves[at] = entry,
            Err(at) => self.leaves.insert(at, entry),
        }
    }

    /// Whose processor it is, by the name in leaf 0.
    #[must_use]
    pub fn vendor(&self) -> Vendor {
        let name = leaves::vendor(0, Vendor::Amd.text());
        match self.get(0, 0) {
            Some(r) if (r.ebx, r.ecx, r.edx) == (name.ebx, name.ecx, name.edx) => Vendor::Amd,
            _ => Vendor::Intel,
        }
    }

    /// The signature: leaf 1, EAX, and EDX after RESET (SDM Vol 3 10.1.2).
    #[must_use]
    pub fn signature(&self) -> u32 {
        self.get(1, 0).map_or(0, |r| r.eax)
    }

    /// The answer as the processor gives it, for the fields that are the same on all vCPUs: on Intel processors
    /// leaves beyond the highest basic or extended leaf answer as the highest basic leaf (SDM Vol 2, CPUID, "If a
    /// value entered for CPUID.EAX is higher than the maximum"), absent leaves below it are zero. On AMD processors
    /// both are zero (APM Vol 3 E.1). The range left to hypervisors, 40000000h to 4FFFFFFFh, is zero where it is
    /// not used.
    #[must_use]
    pub fn answer(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        if let Some(r) = self.get(leaf, subleaf) {
            return r;
        }
        let highest_basic = self.get(0, 0).map_or(0, |r| r.eax);
        let within = match leaf >> 28 {
            0 => leaf <= highest_basic,
            4 => true,
            8 => leaf <= self.get(0x8000_0000, 0).map_or(0, |r| r.eax),
            _ => false,
        };
        if !within {
            if self.vendor() == Vendor::Amd {
                return CpuidResult::default();
            }
            return self.get(highest_basic, subleaf).unwrap_or_default();
        }
        // An invalid level of the topology leaves returns the input in ECX[7:0] (SDM Vol 2, leaf 0BH).
        let ecx = if leaf == 0xb { subleaf & 0xff } else { 0 };
        CpuidResult {
            ecx,
            ..CpuidResult::default()
        }
    }

    /// The whole answer for one vCPU: [`CpuidTable::answer`] with the fields that follow its state.
    #[must_use]
    pub fn for_vcpu(&self, leaf: u32, subleaf: u32, vcpu: &VcpuFields) -> CpuidResult {
        let mut r = self.answer(leaf, subleaf);
        let put = |word: &mut u32, bits: u32, on: bool| {
            *word = if on { *word | bits } else { *word & !bits };
        };
        match leaf {
            1 => {
                r.ebx = r.ebx & 0x00ff_ffff | vcpu.apic_id << 24;
                let osxsave = vcpu.osxsave && r.ecx & leaf1_ecx::XSAVE != 0;
                put(&mut r.ecx, leaf1_ecx::OSXSAVE, osxsave);
                let apic = vcpu.apic_enabled && r.edx & leaf1_edx::APIC != 0;
                put(&mut r.edx, leaf1_edx::APIC, apic);
                let monitor = vcpu.monitor && r.ecx & leaf1_ecx::MONITOR != 0;
                put(&mut r.ecx, leaf1_ecx::MONITOR, monitor);
            }
            7 if subleaf == 0 => {
                let ospke = vcpu.pke && r.ecx & leaf7_ecx::PKU != 0;
                put(&mut r.ecx, leaf7_ecx::OSPKE, ospke);
            }
            0xb => r.edx = vcpu.apic_id,
            0xd if subleaf == 0 && r.eax != 0 => {
                r.ebx = self.xsave_standard_bytes(vcpu.xcr0);
            }
            0xd if subleaf == 1 && r.eax & (leafd1_eax::XSAVEC | leafd1_eax::XSAVES) != 0 => {
                r.ebx = self.xsave_compacted_bytes(vcpu.xcr0 | vcpu.xss);
            }
            0x8000_0001 => {
                // Intel: only in 64-bit mode (SDM Vol 2, Table 3-8).
                if !vcpu.mode64 && self.vendor() == Vendor::Intel {
                    put(&mut r.edx, ext1_edx::SYSCALL, false);
                }
                // AMD repeats the bit of leaf 1 (APM Vol 3 E.4.2).
                let apic = vcpu.apic_enabled && r.edx & leaf1_edx::APIC != 0;
                put(&mut r.edx, leaf1_edx::APIC, apic);
            }
            // AMD: the APIC id, the core's number; one thread a core, one node (APM Vol 3 E.4.16).
            0x8000_001e if self.vendor() == Vendor::Amd => {
                r.eax = vcpu.apic_id;
                r.ebx = vcpu.apic_id & 0xff;
            }
            _ => {}
        }
        r
    }

    /// Bytes of an XSAVE area in standard format for the components of `xcr0` (SDM Vol 1 13.4.3): up to the end of
    /// the component with the highest offset.
    #[must_use]
    pub fn xsave_standard_bytes(&self, xcr0: u64) -> u32 {
        self.xsave_components(xcr0)
            .map(|(_, r)| r.ebx.saturating_add(r.eax))
            .max()
            .unwrap_or(xstate::LEGACY_AND_HEADER_BYTES)
    }

    /// Bytes of an XSAVE area in compacted format for the components of `xcomp` (SDM Vol 1 13.4.3).
    #[must_use]
    pub fn xsave_compacted_bytes(&self, xcomp: u64) -> u32 {
        self.xsave_components(xcomp)
            .fold(xstate::LEGACY_AND_HEADER_BYTES, |at, (_, r)| {
                compacted_start(at, r).saturating_add(r.eax)
            })
    }

    /// Where component `number` begins in the compacted format that has the components of `xcomp`.
    #[must_use]
    pub fn xsave_compacted_offset(&self, xcomp: u64, number: u32) -> u32 {
        let below = self.xsave_compacted_bytes(xcomp & ((1 << number.min(63)) - 1));
        let r = self.get(0xd, number).unwrap_or_default();
        compacted_start(below, r)
    }

    /// The components of `mask` above SSE, by number.
    fn xsave_components(&self, mask: u64) -> impl Iterator<Item = (u32, CpuidResult)> {
        (2..63)
            .filter(move |n| mask >> n & 1 != 0)
            .filter_map(|n| self.get(0xd, n).map(|r| (n, r)))
    }
}

/// Components follow the header without gaps, but those with ECX[1] set begin at a multiple of 64 bytes (SDM Vol 1
/// 13.4.3).
fn compacted_start(at: u32, r: CpuidResult) -> u32 {
    if r.ecx & 2 != 0 {
        at.next_multiple_of(64)
    } else {
        at
    }
}
