//! Feature bits of CPUID, one module a register (SDM Vol 2, CPUID, Tables 3-8, 3-10 and 3-11).

/// Leaf 1, ECX (SDM Vol 2, Table 3-10).
pub mod leaf1_ecx {
    /// SSE3.
    pub const SSE3: u32 = 1;
    /// Carry-less multiplication.
    pub const PCLMULQDQ: u32 = 1 << 1;
    /// MONITOR and MWAIT.
    pub const MONITOR: u32 = 1 << 3;
    /// VT-x.
    pub const VMX: u32 = 1 << 5;
    /// SSSE3.
    pub const SSSE3: u32 = 1 << 9;
    /// Fused multiply-add on YMM state.
    pub const FMA: u32 = 1 << 12;
    /// CMPXCHG16B.
    pub const CX16: u32 = 1 << 13;
    /// Process-context identifiers.
    pub const PCID: u32 = 1 << 17;
    /// SSE4.1.
    pub const SSE4_1: u32 = 1 << 19;
    /// SSE4.2.
    pub const SSE4_2: u32 = 1 << 20;
    /// x2APIC.
    pub const X2APIC: u32 = 1 << 21;
    /// MOVBE.
    pub const MOVBE: u32 = 1 << 22;
    /// POPCNT.
    pub const POPCNT: u32 = 1 << 23;
    /// One-shot APIC timer by TSC deadline.
    pub const TSC_DEADLINE: u32 = 1 << 24;
    /// AES instructions.
    pub const AES: u32 = 1 << 25;
    /// XSAVE, XRSTOR, XSETBV, XGETBV and XCR0.
    pub const XSAVE: u32 = 1 << 26;
    /// CR4.OSXSAVE, as the operating system set it.
    pub const OSXSAVE: u32 = 1 << 27;
    /// AVX.
    pub const AVX: u32 = 1 << 28;
    /// Half-precision conversions.
    pub const F16C: u32 = 1 << 29;
    /// RDRAND.
    pub const RDRAND: u32 = 1 << 30;
    /// Never set by a processor; hypervisors set it for their guests.
    pub const HYPERVISOR: u32 = 1 << 31;
}

/// Leaf 1, EDX (SDM Vol 2, Table 3-11).
pub mod leaf1_edx {
    /// x87 unit on chip.
    pub const FPU: u32 = 1;
    /// Virtual-8086 mode extensions.
    pub const VME: u32 = 1 << 1;
    /// Debugging extensions.
    pub const DE: u32 = 1 << 2;
    /// 4-MByte pages.
    pub const PSE: u32 = 1 << 3;
    /// Time-stamp counter.
    pub const TSC: u32 = 1 << 4;
    /// RDMSR and WRMSR.
    pub const MSR: u32 = 1 << 5;
    /// Physical address extension.
    pub const PAE: u32 = 1 << 6;
    /// Machine-check exception.
    pub const MCE: u32 = 1 << 7;
    /// CMPXCHG8B.
    pub const CX8: u32 = 1 << 8;
    /// APIC on chip; clear while IA32_APIC_BASE disables it.
    pub const APIC: u32 = 1 << 9;
    /// SYSENTER and SYSEXIT.
    pub const SEP: u32 = 1 << 11;
    /// Memory type range registers.
    pub const MTRR: u32 = 1 << 12;
    /// Global pages.
    pub const PGE: u32 = 1 << 13;
    /// Machine-check architecture.
    pub const MCA: u32 = 1 << 14;
    /// Conditional moves.
    pub const CMOV: u32 = 1 << 15;
    /// Page attribute table.
    pub const PAT: u32 = 1 << 16;
    /// 36-bit page size extension.
    pub const PSE36: u32 = 1 << 17;
    /// CLFLUSH.
    pub const CLFSH: u32 = 1 << 19;
    /// MMX.
    pub const MMX: u32 = 1 << 23;
    /// FXSAVE and FXRSTOR.
    pub const FXSR: u32 = 1 << 24;
    /// SSE.
    pub const SSE: u32 = 1 << 25;
    /// SSE2.
    pub const SSE2: u32 = 1 << 26;
    /// Self snoop.
    pub const SS: u32 = 1 << 27;
    /// The package has more than one addressable logical processor.
    pub const HTT: u32 = 1 << 28;
}

/// Leaf 6, EAX: thermal and power management (SDM Vol 2, Table 3-8).
pub mod leaf6_eax {
    /// The APIC timer always runs.
    pub const ARAT: u32 = 1 << 2;
}

/// Leaf 7, subleaf 0, EBX (SDM Vol 2, Table 3-8).
pub mod leaf7_ebx {
    /// RDFSBASE and friends.
    pub const FSGSBASE: u32 = 1;
    /// IA32_TSC_ADJUST.
    pub const TSC_ADJUST: u32 = 1 << 1;
    /// BMI1.
    pub const BMI1: u32 = 1 << 3;
    /// AVX2.
    pub const AVX2: u32 = 1 << 5;
    /// Supervisor-mode execution prevention.
    pub const SMEP: u32 = 1 << 7;
    /// BMI2.
    pub const BMI2: u32 = 1 << 8;
    /// Enhanced REP MOVSB and STOSB.
    pub const ERMS: u32 = 1 << 9;
    /// INVPCID.
    pub const INVPCID: u32 = 1 << 10;
    /// The x87 unit saves FCS and FDS as 0.
    pub const NO_FPU_CS_DS: u32 = 1 << 13;
    /// RDSEED.
    pub const RDSEED: u32 = 1 << 18;
    /// ADCX and ADOX.
    pub const ADX: u32 = 1 << 19;
    /// Supervisor-mode access prevention.
    pub const SMAP: u32 = 1 << 20;
    /// CLFLUSHOPT.
    pub const CLFLUSHOPT: u32 = 1 << 23;
    /// CLWB.
    pub const CLWB: u32 = 1 << 24;
    /// SHA instructions.
    pub const SHA: u32 = 1 << 29;
}

/// Leaf 7, subleaf 0, ECX (SDM Vol 2, Table 3-8).
pub mod leaf7_ecx {
    /// User-mode instruction prevention.
    pub const UMIP: u32 = 1 << 2;
    /// Protection keys for user pages.
    pub const PKU: u32 = 1 << 3;
    /// CR4.PKE, as the operating system set it.
    pub const OSPKE: u32 = 1 << 4;
    /// Galois-field instructions.
    pub const GFNI: u32 = 1 << 8;
    /// AES on YMM registers.
    pub const VAES: u32 = 1 << 9;
    /// Carry-less multiplication on YMM registers.
    pub const VPCLMULQDQ: u32 = 1 << 10;
    /// RDPID.
    pub const RDPID: u32 = 1 << 22;
}

/// Leaf 7, subleaf 0, EDX (SDM Vol 2, Table 3-8).
pub mod leaf7_edx {
    /// Fast short REP MOVSB.
    pub const FSRM: u32 = 1 << 4;
    /// IBRS and IBPB: IA32_SPEC_CTRL and IA32_PRED_CMD.
    pub const SPEC_CTRL: u32 = 1 << 26;
    /// IA32_ARCH_CAPABILITIES.
    pub const ARCH_CAPABILITIES: u32 = 1 << 29;
}

/// Leaf 7, subleaf 2, EDX (SDM Vol 2, Table 3-8).
pub mod leaf7_2_edx {
    /// IA32_SPEC_CTRL has BHI_DIS_S.
    pub const BHI_CTRL: u32 = 1 << 4;
}

/// Leaf 0Dh, subleaf 1, EAX (SDM Vol 2, Table 3-8).
pub mod leafd1_eax {
    /// XSAVEOPT.
    pub const XSAVEOPT: u32 = 1;
    /// XSAVEC and the compacted form of XRSTOR.
    pub const XSAVEC: u32 = 1 << 1;
    /// XGETBV with ECX = 1.
    pub const XGETBV1: u32 = 1 << 2;
    /// XSAVES, XRSTORS and IA32_XSS.
    pub const XSAVES: u32 = 1 << 3;
}

/// State components of the XSAVE feature set, as bits of XCR0 (SDM Vol 1 13.1, 13.3).
pub mod xstate {
    /// x87.
    pub const X87: u64 = 1;
    /// XMM registers and MXCSR.
    pub const SSE: u64 = 1 << 1;
    /// Upper halves of the YMM registers.
    pub const AVX: u64 = 1 << 2;
    /// PKRU.
    pub const PKRU: u64 = 1 << 9;
    /// Bytes of the PKRU component, and its offset in the standard format: behind the components of AVX-512,
    /// whether there are any or not.
    pub const PKRU_BYTES: u32 = 8;
    /// The offset.
    pub const PKRU_OFFSET: u32 = 2688;
    /// Legacy region and header of an XSAVE area in bytes (SDM Vol 1 13.4).
    pub const LEGACY_AND_HEADER_BYTES: u32 = 576;
    /// Bytes of the AVX component, and its offset in the standard format (SDM Vol 1 13.5.3).
    pub const AVX_BYTES: u32 = 256;
    /// Offset of the AVX component in the standard format.
    pub const AVX_OFFSET: u32 = 576;
}

/// Leaf 5: MONITOR and MWAIT (SDM Vol 2, Table 3-8).
pub mod leaf5 {
    /// ECX: the extensions below are told.
    pub const EXTENSIONS: u32 = 1;
    /// ECX: MWAIT can end by an interrupt that is masked by RFLAGS.IF.
    pub const INTERRUPT_BREAK: u32 = 1 << 1;
    /// EDX: position of the number of C1 states.
    pub const C1_SHIFT: u32 = 4;
}

/// Leaf 80000001h, ECX (SDM Vol 2, Table 3-8; APM Vol 3 E.4.2).
pub mod ext1_ecx {
    /// LAHF and SAHF in 64-bit mode.
    pub const LAHF64: u32 = 1;
    /// AMD: the package has more than one core.
    pub const CMP_LEGACY: u32 = 1 << 1;
    /// AMD: AMD-V.
    pub const SVM: u32 = 1 << 2;
    /// AMD: LOCK MOV CR0 is MOV CR8.
    pub const ALT_MOV_CR8: u32 = 1 << 4;
    /// AMD: EXTRQ, INSERTQ, MOVNTSS, MOVNTSD.
    pub const SSE4A: u32 = 1 << 6;
    /// AMD: leaves 8000001Dh and 8000001Eh.
    pub const TOPOLOGY: u32 = 1 << 22;
    /// LZCNT.
    pub const LZCNT: u32 = 1 << 5;
    /// PREFETCHW.
    pub const PREFETCHW: u32 = 1 << 8;
}

/// Leaf 80000001h, EDX (SDM Vol 2, Table 3-8; APM Vol 3 E.4.2).
pub mod ext1_edx {
    /// SYSCALL and SYSRET; reads as 1 only in 64-bit mode.
    pub const SYSCALL: u32 = 1 << 11;
    /// Execute disable.
    pub const NX: u32 = 1 << 20;
    /// AMD: the integer instructions that SSE added to MMX.
    pub const MMXEXT: u32 = 1 << 22;
    /// 1-GByte pages.
    pub const PAGE_1GB: u32 = 1 << 26;
    /// RDTSCP and IA32_TSC_AUX.
    pub const RDTSCP: u32 = 1 << 27;
    /// Intel 64.
    pub const LM: u32 = 1 << 29;
}

/// Leaf 80000007h, EDX (SDM Vol 2, Table 3-8).
pub mod ext7_edx {
    /// The TSC runs at a constant rate in all power states (SDM Vol 3 18.17.1).
    pub const INVARIANT_TSC: u32 = 1 << 8;
}

/// Leaf 80000008h, EBX: AMD's further features (APM Vol 3 E.4.7).
pub mod ext8_ebx {
    /// CLZERO.
    pub const CLZERO: u32 = 1;
    /// FXSAVE, XSAVE and their counterparts move the x87 error pointers in any case.
    pub const X87_POINTERS: u32 = 1 << 2;
    /// WBNOINVD.
    pub const WBNOINVD: u32 = 1 << 9;
    /// IBPB: IA32_PRED_CMD.
    pub const IBPB: u32 = 1 << 12;
    /// IBRS: IA32_SPEC_CTRL.
    pub const IBRS: u32 = 1 << 14;
    /// STIBP.
    pub const STIBP: u32 = 1 << 15;
    /// EFER.LMSLE, limits of segments in 64-bit mode, is not there.
    pub const NO_LMSLE: u32 = 1 << 20;
    /// Not affected by speculative store bypass.
    pub const SSB_NO: u32 = 1 << 26;
    /// Not affected by branch type confusion.
    pub const BTC_NO: u32 = 1 << 29;
}

/// Leaf 80000021h (APM Vol 3 E.4.17).
pub mod ext21 {
    /// EAX: LFENCE serializes always.
    pub const LFENCE_SERIALIZES: u32 = 1 << 2;
    /// EAX: a null selector clears the segment's base and limit.
    pub const NULL_CLEARS_BASE: u32 = 1 << 6;
    /// EAX: EFER.AIBRSE.
    pub const AUTOMATIC_IBRS: u32 = 1 << 8;
    /// EAX: the MSR SMM_CTL is not there.
    pub const NO_SMM_CTL: u32 = 1 << 9;
    /// EAX: not affected by speculative return stack overflow.
    pub const SRSO_NO: u32 = 1 << 29;
    /// ECX: not affected by transient scheduler attacks on the store queue.
    pub const TSA_SQ_NO: u32 = 1 << 1;
    /// ECX: not affected by transient scheduler attacks on the L1 data cache.
    pub const TSA_L1_NO: u32 = 1 << 2;
}
