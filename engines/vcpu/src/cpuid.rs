//! What CPUID answers: tables of leaves.

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
    /// The answer. Fields that depend on the vCPU or its mode (APIC ids, OSXSAVE, XSAVE sizes) are filled
    /// in by the engine.
    pub result: CpuidResult,
}

/// The answers of a CPU model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuidTable {
    /// Sorted by leaf and subleaf.
    pub leaves: Vec<CpuidLeaf>,
}

impl CpuidTable {
    /// The stored answer for `(leaf, subleaf)`, if the model has it.
    #[must_use]
    pub fn get(&self, leaf: u32, subleaf: u32) -> Option<CpuidResult> {
        self.leaves
            .iter()
            .find(|l| l.leaf == leaf && l.subleaf.is_none_or(|s| s == subleaf))
            .map(|l| l.result)
    }

    /// The answer as the processor gives it: leaves beyond the highest basic leaf answer as that leaf
    /// (SDM Vol 2, CPUID, "INPUT EAX ..."), absent leaves below it are zero.
    #[must_use]
    pub fn answer(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        let class = leaf & 0xf000_0000;
        let highest = self.get(class, 0).map_or(0, |r| r.eax);
        if let Some(r) = self.get(leaf, subleaf) {
            return r;
        }
        if class == 0x8000_0000 && highest >= leaf {
            return CpuidResult::default();
        }
        let highest_basic = self.get(0, 0).map_or(0, |r| r.eax);
        if class == 0 && leaf <= highest_basic {
            return CpuidResult::default();
        }
        self.get(highest_basic, subleaf).unwrap_or_default()
    }
}
