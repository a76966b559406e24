//! VM-instruction errors (SDM Vol 3 31.4) and the VM-exit instruction-information field (28.2.5).

/// VM-instruction error numbers (SDM Vol 3 Table 31-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum InstructionError {
    /// VMCALL executed in VMX root operation.
    VmcallInRoot = 1,
    /// VMCLEAR with invalid physical address.
    VmclearInvalidAddress = 2,
    /// VMCLEAR with VMXON pointer.
    VmclearVmxonPointer = 3,
    /// VMLAUNCH with non-clear VMCS.
    VmlaunchNonClear = 4,
    /// VMRESUME with non-launched VMCS.
    VmresumeNonLaunched = 5,
    /// VMRESUME after VMXOFF.
    VmresumeAfterVmxoff = 6,
    /// VM entry with invalid control fields.
    EntryInvalidControls = 7,
    /// VM entry with invalid host-state fields.
    EntryInvalidHostState = 8,
    /// VMPTRLD with invalid physical address.
    VmptrldInvalidAddress = 9,
    /// VMPTRLD with VMXON pointer.
    VmptrldVmxonPointer = 10,
    /// VMPTRLD with incorrect VMCS revision identifier.
    VmptrldRevision = 11,
    /// VMREAD or VMWRITE from or to unsupported VMCS component.
    UnsupportedComponent = 12,
    /// VMWRITE to read-only VMCS component.
    ReadOnlyComponent = 13,
    /// VMXON executed in VMX root operation.
    VmxonInRoot = 15,
    /// VM entry with invalid executive-VMCS pointer.
    EntryInvalidExecutiveVmcs = 16,
    /// VM entry with non-launched executive VMCS.
    EntryNonLaunchedExecutiveVmcs = 17,
    /// VM entry with executive-VMCS pointer not VMXON pointer.
    EntryExecutiveVmcsNotVmxon = 18,
    /// VMCALL with non-clear VMCS.
    VmcallNonClear = 19,
    /// VMCALL with invalid VM-exit control fields.
    VmcallInvalidExitControls = 20,
    /// VMCALL with incorrect MSEG revision identifier.
    VmcallMsegRevision = 22,
    /// VMXOFF under dual-monitor treatment of SMIs and SMM.
    VmxoffDualMonitor = 23,
    /// VMCALL with invalid SMM-monitor features.
    VmcallSmmFeatures = 24,
    /// VM entry with invalid VM-execution control fields in executive VMCS.
    EntryInvalidExecutiveControls = 25,
    /// VM entry with events blocked by MOV SS.
    EntryBlockedByMovSs = 26,
    /// Invalid operand to INVEPT or INVVPID.
    InvalidInvalidation = 28,
}

/// INVEPT types (SDM Vol 3 chapter 31, "INVEPT").
pub mod invept {
    /// Single-context.
    pub const SINGLE_CONTEXT: u64 = 1;
    /// All-context.
    pub const ALL_CONTEXT: u64 = 2;
}

/// INVVPID types (SDM Vol 3 chapter 31, "INVVPID").
pub mod invvpid {
    /// Individual-address.
    pub const INDIVIDUAL_ADDRESS: u64 = 0;
    /// Single-context.
    pub const SINGLE_CONTEXT: u64 = 1;
    /// All-context.
    pub const ALL_CONTEXT: u64 = 2;
    /// Single-context-retaining-globals.
    pub const RETAINING_GLOBALS: u64 = 3;
}

/// A memory operand as the instruction-information field describes it (SDM Vol 3 Tables 28-9 to 28-14).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryOperand {
    /// log2 of the scale, 0 to 3; meaningless without an index.
    pub scale_log2: u8,
    /// Address size: 0 for 16 bits, 1 for 32, 2 for 64.
    pub address_size: u8,
    /// Segment register, 0 to 5 for ES, CS, SS, DS, FS, GS.
    pub segment: u8,
    /// Index register, 0 to 15.
    pub index: Option<u8>,
    /// Base register, 0 to 15.
    pub base: Option<u8>,
}

impl MemoryOperand {
    /// The bits every format shares: 1:0, 9:7, 17:15, 22:18, 27:23.
    #[must_use]
    pub const fn bits(self) -> u32 {
        let index = match self.index {
            Some(r) => ((r & 0xf) as u32) << 18 | ((self.scale_log2 & 3) as u32),
            None => 1 << 22,
        };
        let base = match self.base {
            Some(r) => ((r & 0xf) as u32) << 23,
            None => 1 << 27,
        };
        ((self.address_size & 7) as u32) << 7 | ((self.segment & 7) as u32) << 15 | index | base
    }
}

/// Instruction-information layouts (SDM Vol 3 28.2.5).
pub mod information {
    use super::MemoryOperand;

    /// Bit 10: the operand is a register (bits 6:3), not memory.
    pub const REGISTER_OPERAND: u32 = 1 << 10;

    /// INS and OUTS (Table 28-8): address size, and the segment (OUTS only; 0 for INS).
    #[must_use]
    pub const fn ins_outs(address_size: u8, segment: u8) -> u32 {
        ((address_size & 7) as u32) << 7 | ((segment & 7) as u32) << 15
    }

    /// INVEPT, INVPCID, INVVPID (Table 28-9): memory operand and the register that holds the type.
    #[must_use]
    pub const fn invalidation(memory: MemoryOperand, register2: u8) -> u32 {
        memory.bits() | ((register2 & 0xf) as u32) << 28
    }

    /// LIDT, LGDT, SIDT, SGDT (Table 28-10): bit 11 is the operand size outside 64-bit mode (32 bits),
    /// bits 29:28 the instruction: 0 SGDT, 1 SIDT, 2 LGDT, 3 LIDT.
    #[must_use]
    pub const fn gdtr_idtr(memory: MemoryOperand, operand_32: bool, instruction: u8) -> u32 {
        memory.bits() | (operand_32 as u32) << 11 | ((instruction & 3) as u32) << 28
    }

    /// LLDT, LTR, SLDT, STR (Table 28-11): bits 29:28 the instruction: 0 SLDT, 1 STR, 2 LLDT, 3 LTR.
    #[must_use]
    pub const fn ldtr_tr(operand: Operand, instruction: u8) -> u32 {
        operand.bits() | ((instruction & 3) as u32) << 28
    }

    /// RDRAND and RDSEED (Table 28-12): destination register; operand size 0 for 16 bits, 1 for 32, 2 for 64.
    #[must_use]
    pub const fn random(register: u8, operand_size: u8) -> u32 {
        ((register & 0xf) as u32) << 3 | ((operand_size & 3) as u32) << 11
    }

    /// VMCLEAR, VMPTRLD, VMPTRST, VMXON, XRSTORS, XSAVES (Table 28-13).
    #[must_use]
    pub const fn memory(memory: MemoryOperand) -> u32 {
        memory.bits()
    }

    /// VMREAD and VMWRITE (Table 28-14): the operand that holds the value, and the register with the encoding.
    #[must_use]
    pub const fn vmread_vmwrite(operand: Operand, register2: u8) -> u32 {
        operand.bits() | ((register2 & 0xf) as u32) << 28
    }

    /// A register or memory operand.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Operand {
        /// Register 0 to 15.
        Register(u8),
        /// Memory.
        Memory(MemoryOperand),
    }

    impl Operand {
        const fn bits(self) -> u32 {
            match self {
                // Bits 27:15 and 9:7 are undefined for a register; zero here.
                Self::Register(r) => ((r & 0xf) as u32) << 3 | REGISTER_OPERAND,
                Self::Memory(m) => m.bits(),
            }
        }
    }
}
