//! The architectural state of a vCPU, common to all engines.

use x86defs::segment::{Access, Selector};

/// A segment register with its hidden part (SDM Vol 3 3.4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentRegister {
    /// Visible selector.
    pub selector: Selector,
    /// Base address.
    pub base: u64,
    /// Limit in bytes, granularity applied.
    pub limit: u32,
    /// Access rights in the VMCS format (SDM Vol 3 25.4.1, Table 25-2), "unusable" bit included.
    pub access: Access,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescriptorTable {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// What the processor is doing (SDM Vol 3 9.4, 25.4.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MpState {
    /// Executing.
    #[default]
    Running,
    /// In HLT.
    Halted,
    /// Waiting for a start-up IPI.
    WaitForSipi,
    /// Shutdown after a triple fault.
    Shutdown,
}

/// Interruptibility state (SDM Vol 3 25.4.2, Table 25-3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interruptibility {
    /// Blocking by STI.
    pub sti: bool,
    /// Blocking by MOV SS or POP SS.
    pub mov_ss: bool,
    /// Blocking by NMI.
    pub nmi: bool,
}

/// An exception, NMI or interrupt that is recognized but not yet delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingEvent {
    /// Vector.
    pub vector: u8,
    /// Error code, for exceptions that push one.
    pub error_code: Option<u32>,
}

/// x87, SSE, AVX state and PKRU as the XSAVE area holds it (SDM Vol 1 13.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtendedState {
    /// Legacy region: the FXSAVE64 image, 512 bytes, and the XSAVE header, 64 bytes, in standard format.
    pub legacy: Box<[u8; 576]>,
    /// Upper halves of YMM0 to YMM15 (state component 2, offset 576, 256 bytes).
    pub ymm_high: [u128; 16],
    /// PKRU (state component 9).
    pub pkru: u32,
}

/// System registers and MSRs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SystemRegisters {
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// CR8.
    pub cr8: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// XCR0.
    pub xcr0: u64,
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// All other MSRs the engine keeps, `(index, value)` in ascending order.
    pub msrs: Vec<(u32, u64)>,
}

/// The architectural state of a vCPU at an instruction boundary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VcpuState {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15 (the order of their encodings).
    pub gpr: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS (the order of their encodings).
    pub segments: [SegmentRegister; 6],
    /// LDTR.
    pub ldtr: SegmentRegister,
    /// TR.
    pub tr: SegmentRegister,
    /// GDTR.
    pub gdtr: DescriptorTable,
    /// IDTR.
    pub idtr: DescriptorTable,
    /// Control registers and MSRs.
    pub system: SystemRegisters,
    /// Vector and floating-point state.
    pub extended: ExtendedState,
    /// What the processor is doing.
    pub mp_state: MpState,
    /// Interrupt and NMI blocking.
    pub interruptibility: Interruptibility,
    /// An exception that was raised and not yet delivered.
    pub pending: Option<PendingEvent>,
}

impl Default for ExtendedState {
    /// The state after FNINIT with MXCSR at its reset value.
    fn default() -> Self {
        let mut legacy = Box::new([0; 576]);
        legacy[0..2].copy_from_slice(&0x037fu16.to_le_bytes());
        legacy[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        legacy[28..32].copy_from_slice(&0xffffu32.to_le_bytes());
        Self {
            legacy,
            ymm_high: [0; 16],
            pkru: 0,
        }
    }
}

/// The state after RESET (SDM Vol 3 Table 10-1), boot processor or one that waits for a start-up IPI.
#[must_use]
pub fn reset(bootstrap: bool) -> VcpuState {
    let data = SegmentRegister {
        selector: Selector(0),
        base: 0,
        limit: 0xffff,
        access: Access(0x93),
    };
    let code = SegmentRegister {
        selector: Selector(0xf000),
        base: 0xffff_0000,
        limit: 0xffff,
        access: Access(0x9b),
    };
    let mut gpr = [0; 16];
    gpr[2] = 0x000a_0652; // EDX: processor signature
    VcpuState {
        gpr,
        rip: 0xfff0,
        rflags: 2,
        segments: [data, code, data, data, data, data],
        ldtr: SegmentRegister {
            access: Access(0x82),
            ..data
        },
        tr: SegmentRegister {
            access: Access(0x8b),
            ..data
        },
        gdtr: DescriptorTable {
            base: 0,
            limit: 0xffff,
        },
        idtr: DescriptorTable {
            base: 0,
            limit: 0xffff,
        },
        system: SystemRegisters {
            cr0: 0x6000_0010,
            xcr0: 1,
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            ..SystemRegisters::default()
        },
        extended: ExtendedState::default(),
        mp_state: if bootstrap {
            MpState::Running
        } else {
            MpState::WaitForSipi
        },
        interruptibility: Interruptibility::default(),
        pending: None,
    }
}
