//! VMCS component encodings (SDM Vol 3 25.11.2 and appendix B).
//!
//! [`VmcsField`] has one variant a field; its discriminant is a dense index, so that an implementation can
//! keep the fields in a flat array. [`VmcsField::decode`] maps an encoding to it by one table lookup.

/// Width of a field: encoding bits 14:13 (SDM Vol 3 Table 25-21).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldWidth {
    /// 16 bits.
    Bits16 = 0,
    /// 64 bits.
    Bits64 = 1,
    /// 32 bits.
    Bits32 = 2,
    /// 64 bits on processors with Intel 64 architecture.
    Natural = 3,
}

/// What a field is for: encoding bits 11:10 (SDM Vol 3 Table 25-21).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldType {
    /// Control.
    Control = 0,
    /// VM-exit information; read-only unless IA32_VMX_MISC bit 29 is set.
    ExitInformation = 1,
    /// Guest state.
    Guest = 2,
    /// Host state.
    Host = 3,
}

/// Which part of a field an encoding names: bit 0 (SDM Vol 3 Table 25-21).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldAccess {
    /// The whole field.
    Full,
    /// Bits 63:32 of a 64-bit field.
    High,
}

/// Slots of [`DECODE`] for one (width, type) pair; indices above are in no SDM field.
const INDICES_PER_GROUP: usize = 64;
/// "No such field" in [`DECODE`].
const ABSENT: u8 = u8::MAX;

macro_rules! fields {
    ($($(#[$d:meta])* $name:ident = $v:expr;)*) => {
        /// A field of the VMCS (SDM Vol 3 appendix B). The discriminant is a dense index below
        /// [`VmcsField::COUNT`]; new fields go to the end, so that stored indices stay valid.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum VmcsField { $($(#[$d])* $name,)* }

        impl VmcsField {
            /// Every field, in the order of the dense index.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }

        /// Encodings in the order of the dense index.
        const ENCODINGS: &[u32] = &[$($v,)*];
    };
}

fields! {
    // 16-bit control fields (Table B-1).
    /// Virtual-processor identifier.
    Vpid = 0x0000;
    /// Posted-interrupt notification vector.
    PostedInterruptVector = 0x0002;
    /// EPTP index.
    EptpIndex = 0x0004;
    /// HLAT prefix size.
    HlatPrefixSize = 0x0006;
    /// Last PID-pointer index.
    LastPidPointerIndex = 0x0008;
    // 16-bit guest-state fields (Table B-2).
    /// Guest ES selector.
    GuestEsSelector = 0x0800;
    /// Guest CS selector.
    GuestCsSelector = 0x0802;
    /// Guest SS selector.
    GuestSsSelector = 0x0804;
    /// Guest DS selector.
    GuestDsSelector = 0x0806;
    /// Guest FS selector.
    GuestFsSelector = 0x0808;
    /// Guest GS selector.
    GuestGsSelector = 0x080a;
    /// Guest LDTR selector.
    GuestLdtrSelector = 0x080c;
    /// Guest TR selector.
    GuestTrSelector = 0x080e;
    /// Guest interrupt status.
    GuestInterruptStatus = 0x0810;
    /// PML index.
    PmlIndex = 0x0812;
    /// Guest user-interrupt notification vector.
    GuestUinv = 0x0814;
    // 16-bit host-state fields (Table B-3).
    /// Host ES selector.
    HostEsSelector = 0x0c00;
    /// Host CS selector.
    HostCsSelector = 0x0c02;
    /// Host SS selector.
    HostSsSelector = 0x0c04;
    /// Host DS selector.
    HostDsSelector = 0x0c06;
    /// Host FS selector.
    HostFsSelector = 0x0c08;
    /// Host GS selector.
    HostGsSelector = 0x0c0a;
    /// Host TR selector.
    HostTrSelector = 0x0c0c;
    // 64-bit control fields (Table B-4).
    /// Address of I/O bitmap A.
    IoBitmapA = 0x2000;
    /// Address of I/O bitmap B.
    IoBitmapB = 0x2002;
    /// Address of MSR bitmaps.
    MsrBitmaps = 0x2004;
    /// VM-exit MSR-store address.
    ExitMsrStoreAddress = 0x2006;
    /// VM-exit MSR-load address.
    ExitMsrLoadAddress = 0x2008;
    /// VM-entry MSR-load address.
    EntryMsrLoadAddress = 0x200a;
    /// Executive-VMCS pointer.
    ExecutiveVmcsPointer = 0x200c;
    /// PML address.
    PmlAddress = 0x200e;
    /// TSC offset.
    TscOffset = 0x2010;
    /// Virtual-APIC address.
    VirtualApicAddress = 0x2012;
    /// APIC-access address.
    ApicAccessAddress = 0x2014;
    /// Posted-interrupt descriptor address.
    PostedInterruptDescriptor = 0x2016;
    /// VM-function controls.
    VmFunctionControls = 0x2018;
    /// EPT pointer.
    EptPointer = 0x201a;
    /// EOI-exit bitmap 0.
    EoiExitBitmap0 = 0x201c;
    /// EOI-exit bitmap 1.
    EoiExitBitmap1 = 0x201e;
    /// EOI-exit bitmap 2.
    EoiExitBitmap2 = 0x2020;
    /// EOI-exit bitmap 3.
    EoiExitBitmap3 = 0x2022;
    /// EPTP-list address.
    EptpListAddress = 0x2024;
    /// VMREAD-bitmap address.
    VmreadBitmap = 0x2026;
    /// VMWRITE-bitmap address.
    VmwriteBitmap = 0x2028;
    /// Virtualization-exception information address.
    VirtualizationExceptionInfo = 0x202a;
    /// XSS-exiting bitmap.
    XssExitingBitmap = 0x202c;
    /// ENCLS-exiting bitmap.
    EnclsExitingBitmap = 0x202e;
    /// Sub-page-permission-table pointer.
    SubPagePermissionTable = 0x2030;
    /// TSC multiplier.
    TscMultiplier = 0x2032;
    /// Tertiary processor-based VM-execution controls.
    TertiaryControls = 0x2034;
    /// ENCLV-exiting bitmap.
    EnclvExitingBitmap = 0x2036;
    /// Low PASID directory address.
    LowPasidDirectory = 0x2038;
    /// High PASID directory address.
    HighPasidDirectory = 0x203a;
    /// Shared EPT pointer.
    SharedEptPointer = 0x203c;
    /// PCONFIG-exiting bitmap.
    PconfigExitingBitmap = 0x203e;
    /// Hypervisor-managed linear-address translation pointer.
    HlatPointer = 0x2040;
    /// PID-pointer table address.
    PidPointerTable = 0x2042;
    /// Secondary VM-exit controls.
    SecondaryExitControls = 0x2044;
    /// IA32_SPEC_CTRL mask.
    SpecCtrlMask = 0x204a;
    /// IA32_SPEC_CTRL shadow.
    SpecCtrlShadow = 0x204c;
    // 64-bit read-only data field (Table B-5).
    /// Guest-physical address.
    GuestPhysicalAddress = 0x2400;
    // 64-bit guest-state fields (Table B-6).
    /// VMCS link pointer.
    VmcsLinkPointer = 0x2800;
    /// Guest IA32_DEBUGCTL.
    GuestDebugctl = 0x2802;
    /// Guest IA32_PAT.
    GuestPat = 0x2804;
    /// Guest IA32_EFER.
    GuestEfer = 0x2806;
    /// Guest IA32_PERF_GLOBAL_CTRL.
    GuestPerfGlobalCtrl = 0x2808;
    /// Guest PDPTE0.
    GuestPdpte0 = 0x280a;
    /// Guest PDPTE1.
    GuestPdpte1 = 0x280c;
    /// Guest PDPTE2.
    GuestPdpte2 = 0x280e;
    /// Guest PDPTE3.
    GuestPdpte3 = 0x2810;
    /// Guest IA32_BNDCFGS.
    GuestBndcfgs = 0x2812;
    /// Guest IA32_RTIT_CTL.
    GuestRtitCtl = 0x2814;
    /// Guest IA32_LBR_CTL.
    GuestLbrCtl = 0x2816;
    /// Guest IA32_PKRS.
    GuestPkrs = 0x2818;
    // 64-bit host-state fields (Table B-7).
    /// Host IA32_PAT.
    HostPat = 0x2c00;
    /// Host IA32_EFER.
    HostEfer = 0x2c02;
    /// Host IA32_PERF_GLOBAL_CTRL.
    HostPerfGlobalCtrl = 0x2c04;
    /// Host IA32_PKRS.
    HostPkrs = 0x2c06;
    // 32-bit control fields (Table B-8).
    /// Pin-based VM-execution controls.
    PinControls = 0x4000;
    /// Primary processor-based VM-execution controls.
    PrimaryControls = 0x4002;
    /// Exception bitmap.
    ExceptionBitmap = 0x4004;
    /// Page-fault error-code mask.
    PageFaultErrorCodeMask = 0x4006;
    /// Page-fault error-code match.
    PageFaultErrorCodeMatch = 0x4008;
    /// CR3-target count.
    Cr3TargetCount = 0x400a;
    /// Primary VM-exit controls.
    ExitControls = 0x400c;
    /// VM-exit MSR-store count.
    ExitMsrStoreCount = 0x400e;
    /// VM-exit MSR-load count.
    ExitMsrLoadCount = 0x4010;
    /// VM-entry controls.
    EntryControls = 0x4012;
    /// VM-entry MSR-load count.
    EntryMsrLoadCount = 0x4014;
    /// VM-entry interruption-information field.
    EntryInterruptionInfo = 0x4016;
    /// VM-entry exception error code.
    EntryExceptionErrorCode = 0x4018;
    /// VM-entry instruction length.
    EntryInstructionLength = 0x401a;
    /// TPR threshold.
    TprThreshold = 0x401c;
    /// Secondary processor-based VM-execution controls.
    SecondaryControls = 0x401e;
    /// PLE_Gap.
    PleGap = 0x4020;
    /// PLE_Window.
    PleWindow = 0x4022;
    /// Instruction-timeout control.
    InstructionTimeout = 0x4024;
    // 32-bit read-only data fields (Table B-9).
    /// VM-instruction error.
    InstructionError = 0x4400;
    /// Exit reason.
    ExitReason = 0x4402;
    /// VM-exit interruption information.
    ExitInterruptionInfo = 0x4404;
    /// VM-exit interruption error code.
    ExitInterruptionErrorCode = 0x4406;
    /// IDT-vectoring information.
    IdtVectoringInfo = 0x4408;
    /// IDT-vectoring error code.
    IdtVectoringErrorCode = 0x440a;
    /// VM-exit instruction length.
    ExitInstructionLength = 0x440c;
    /// VM-exit instruction information.
    ExitInstructionInfo = 0x440e;
    // 32-bit guest-state fields (Table B-10).
    /// Guest ES limit.
    GuestEsLimit = 0x4800;
    /// Guest CS limit.
    GuestCsLimit = 0x4802;
    /// Guest SS limit.
    GuestSsLimit = 0x4804;
    /// Guest DS limit.
    GuestDsLimit = 0x4806;
    /// Guest FS limit.
    GuestFsLimit = 0x4808;
    /// Guest GS limit.
    GuestGsLimit = 0x480a;
    /// Guest LDTR limit.
    GuestLdtrLimit = 0x480c;
    /// Guest TR limit.
    GuestTrLimit = 0x480e;
    /// Guest GDTR limit.
    GuestGdtrLimit = 0x4810;
    /// Guest IDTR limit.
    GuestIdtrLimit = 0x4812;
    /// Guest ES access rights.
    GuestEsAccess = 0x4814;
    /// Guest CS access rights.
    GuestCsAccess = 0x4816;
    /// Guest SS access rights.
    GuestSsAccess = 0x4818;
    /// Guest DS access rights.
    GuestDsAccess = 0x481a;
    /// Guest FS access rights.
    GuestFsAccess = 0x481c;
    /// Guest GS access rights.
    GuestGsAccess = 0x481e;
    /// Guest LDTR access rights.
    GuestLdtrAccess = 0x4820;
    /// Guest TR access rights.
    GuestTrAccess = 0x4822;
    /// Guest interruptibility state.
    GuestInterruptibility = 0x4824;
    /// Guest activity state.
    GuestActivity = 0x4826;
    /// Guest SMBASE.
    GuestSmbase = 0x4828;
    /// Guest IA32_SYSENTER_CS.
    GuestSysenterCs = 0x482a;
    /// VMX-preemption timer value.
    PreemptionTimer = 0x482e;
    // 32-bit host-state field (Table B-11).
    /// Host IA32_SYSENTER_CS.
    HostSysenterCs = 0x4c00;
    // Natural-width control fields (Table B-12).
    /// CR0 guest/host mask.
    Cr0Mask = 0x6000;
    /// CR4 guest/host mask.
    Cr4Mask = 0x6002;
    /// CR0 read shadow.
    Cr0ReadShadow = 0x6004;
    /// CR4 read shadow.
    Cr4ReadShadow = 0x6006;
    /// CR3-target value 0.
    Cr3Target0 = 0x6008;
    /// CR3-target value 1.
    Cr3Target1 = 0x600a;
    /// CR3-target value 2.
    Cr3Target2 = 0x600c;
    /// CR3-target value 3.
    Cr3Target3 = 0x600e;
    // Natural-width read-only data fields (Table B-13).
    /// Exit qualification.
    ExitQualification = 0x6400;
    /// I/O RCX.
    IoRcx = 0x6402;
    /// I/O RSI.
    IoRsi = 0x6404;
    /// I/O RDI.
    IoRdi = 0x6406;
    /// I/O RIP.
    IoRip = 0x6408;
    /// Guest-linear address.
    GuestLinearAddress = 0x640a;
    // Natural-width guest-state fields (Table B-14).
    /// Guest CR0.
    GuestCr0 = 0x6800;
    /// Guest CR3.
    GuestCr3 = 0x6802;
    /// Guest CR4.
    GuestCr4 = 0x6804;
    /// Guest ES base.
    GuestEsBase = 0x6806;
    /// Guest CS base.
    GuestCsBase = 0x6808;
    /// Guest SS base.
    GuestSsBase = 0x680a;
    /// Guest DS base.
    GuestDsBase = 0x680c;
    /// Guest FS base.
    GuestFsBase = 0x680e;
    /// Guest GS base.
    GuestGsBase = 0x6810;
    /// Guest LDTR base.
    GuestLdtrBase = 0x6812;
    /// Guest TR base.
    GuestTrBase = 0x6814;
    /// Guest GDTR base.
    GuestGdtrBase = 0x6816;
    /// Guest IDTR base.
    GuestIdtrBase = 0x6818;
    /// Guest DR7.
    GuestDr7 = 0x681a;
    /// Guest RSP.
    GuestRsp = 0x681c;
    /// Guest RIP.
    GuestRip = 0x681e;
    /// Guest RFLAGS.
    GuestRflags = 0x6820;
    /// Guest pending debug exceptions.
    GuestPendingDebug = 0x6822;
    /// Guest IA32_SYSENTER_ESP.
    GuestSysenterEsp = 0x6824;
    /// Guest IA32_SYSENTER_EIP.
    GuestSysenterEip = 0x6826;
    /// Guest IA32_S_CET.
    GuestSCet = 0x6828;
    /// Guest SSP.
    GuestSsp = 0x682a;
    /// Guest IA32_INTERRUPT_SSP_TABLE_ADDR.
    GuestInterruptSspTable = 0x682c;
    // Natural-width host-state fields (Table B-15).
    /// Host CR0.
    HostCr0 = 0x6c00;
    /// Host CR3.
    HostCr3 = 0x6c02;
    /// Host CR4.
    HostCr4 = 0x6c04;
    /// Host FS base.
    HostFsBase = 0x6c06;
    /// Host GS base.
    HostGsBase = 0x6c08;
    /// Host TR base.
    HostTrBase = 0x6c0a;
    /// Host GDTR base.
    HostGdtrBase = 0x6c0c;
    /// Host IDTR base.
    HostIdtrBase = 0x6c0e;
    /// Host IA32_SYSENTER_ESP.
    HostSysenterEsp = 0x6c10;
    /// Host IA32_SYSENTER_EIP.
    HostSysenterEip = 0x6c12;
    /// Host RSP.
    HostRsp = 0x6c14;
    /// Host RIP.
    HostRip = 0x6c16;
    /// Host IA32_S_CET.
    HostSCet = 0x6c18;
    /// Host SSP.
    HostSsp = 0x6c1a;
    /// Host IA32_INTERRUPT_SSP_TABLE_ADDR.
    HostInterruptSspTable = 0x6c1c;
}

/// Place of an encoding in [`DECODE`]: width and type (bits 14:13 and 11:10), then the index.
const fn decode_slot(encoding: u32) -> usize {
    let group = (encoding >> 11 & 0xc | encoding >> 10 & 3) as usize;
    group * INDICES_PER_GROUP + (encoding >> 1 & (INDICES_PER_GROUP as u32 - 1)) as usize
}

/// Dense index by [`decode_slot`].
static DECODE: [u8; 16 * INDICES_PER_GROUP] = {
    let mut table = [ABSENT; 16 * INDICES_PER_GROUP];
    let mut i = 0;
    while i < ENCODINGS.len() {
        table[decode_slot(ENCODINGS[i])] = i as u8;
        i += 1;
    }
    table
};

impl VmcsField {
    /// How many fields there are.
    pub const COUNT: usize = ENCODINGS.len();

    /// The dense index.
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The encoding that names the whole field (SDM Vol 3 appendix B).
    #[inline(always)]
    #[must_use]
    pub const fn encoding(self) -> u32 {
        ENCODINGS[self as usize]
    }

    /// The field an encoding names, and which part of it. `None` when the SDM has no such field: reserved
    /// bits set, "high" access to a field that is not of 64 bits, or an index in no table.
    #[inline]
    #[must_use]
    pub const fn decode(encoding: u32) -> Option<(Self, FieldAccess)> {
        const INDEX_BEYOND_TABLE: u32 = 0x3ff & !(2 * INDICES_PER_GROUP as u32 - 1);
        const RESERVED: u32 = 0xffff_8000 | 1 << 12;
        if encoding & (RESERVED | INDEX_BEYOND_TABLE) != 0 {
            return None;
        }
        let index = DECODE[decode_slot(encoding)];
        if index == ABSENT {
            return None;
        }
        let field = Self::ALL[index as usize];
        if encoding & 1 == 0 {
            return Some((field, FieldAccess::Full));
        }
        match field.width() {
            FieldWidth::Bits64 => Some((field, FieldAccess::High)),
            FieldWidth::Bits16 | FieldWidth::Bits32 | FieldWidth::Natural => None,
        }
    }

    /// Width: encoding bits 14:13.
    #[inline(always)]
    #[must_use]
    pub const fn width(self) -> FieldWidth {
        match self.encoding() >> 13 & 3 {
            0 => FieldWidth::Bits16,
            1 => FieldWidth::Bits64,
            2 => FieldWidth::Bits32,
            _ => FieldWidth::Natural,
        }
    }

    /// Type: encoding bits 11:10.
    #[inline(always)]
    #[must_use]
    pub const fn field_type(self) -> FieldType {
        match self.encoding() >> 10 & 3 {
            0 => FieldType::Control,
            1 => FieldType::ExitInformation,
            2 => FieldType::Guest,
            _ => FieldType::Host,
        }
    }

    /// The bits the field can hold.
    #[inline(always)]
    #[must_use]
    pub const fn mask(self) -> u64 {
        match self.width() {
            FieldWidth::Bits16 => 0xffff,
            FieldWidth::Bits32 => 0xffff_ffff,
            FieldWidth::Bits64 | FieldWidth::Natural => u64::MAX,
        }
    }

    /// Guest selectors of ES, CS, SS, DS, FS, GS, LDTR, TR.
    pub const GUEST_SELECTORS: [Self; 8] = [
        Self::GuestEsSelector,
        Self::GuestCsSelector,
        Self::GuestSsSelector,
        Self::GuestDsSelector,
        Self::GuestFsSelector,
        Self::GuestGsSelector,
        Self::GuestLdtrSelector,
        Self::GuestTrSelector,
    ];
    /// Guest bases, in the order of [`VmcsField::GUEST_SELECTORS`].
    pub const GUEST_BASES: [Self; 8] = [
        Self::GuestEsBase,
        Self::GuestCsBase,
        Self::GuestSsBase,
        Self::GuestDsBase,
        Self::GuestFsBase,
        Self::GuestGsBase,
        Self::GuestLdtrBase,
        Self::GuestTrBase,
    ];
    /// Guest limits, in the order of [`VmcsField::GUEST_SELECTORS`].
    pub const GUEST_LIMITS: [Self; 8] = [
        Self::GuestEsLimit,
        Self::GuestCsLimit,
        Self::GuestSsLimit,
        Self::GuestDsLimit,
        Self::GuestFsLimit,
        Self::GuestGsLimit,
        Self::GuestLdtrLimit,
        Self::GuestTrLimit,
    ];
    /// Guest access rights, in the order of [`VmcsField::GUEST_SELECTORS`].
    pub const GUEST_ACCESS: [Self; 8] = [
        Self::GuestEsAccess,
        Self::GuestCsAccess,
        Self::GuestSsAccess,
        Self::GuestDsAccess,
        Self::GuestFsAccess,
        Self::GuestGsAccess,
        Self::GuestLdtrAccess,
        Self::GuestTrAccess,
    ];
    /// Guest PDPTEs 0 to 3.
    pub const GUEST_PDPTES: [Self; 4] = [
        Self::GuestPdpte0,
        Self::GuestPdpte1,
        Self::GuestPdpte2,
        Self::GuestPdpte3,
    ];
    /// CR3-target values 0 to 3.
    pub const CR3_TARGETS: [Self; 4] = [
        Self::Cr3Target0,
        Self::Cr3Target1,
        Self::Cr3Target2,
        Self::Cr3Target3,
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_encoding_decodes_to_its_field_and_nothing_else_does() {
        for encoding in 0..0x2_0000u32 {
            let full = encoding & !1;
            let known = VmcsField::ALL
                .iter()
                .copied()
                .find(|f| f.encoding() == full);
            let expected = match (known, encoding & 1) {
                (Some(f), 0) => Some((f, FieldAccess::Full)),
                (Some(f), _) if full >> 13 & 3 == 1 => Some((f, FieldAccess::High)),
                _ => None,
            };
            assert_eq!(VmcsField::decode(encoding), expected, "{encoding:#x}");
        }
        assert_eq!(VmcsField::decode(u32::MAX), None);
        assert_eq!(VmcsField::decode(0x8000_4002), None);
    }

    #[test]
    fn encodings_of_the_appendix() {
        // SDM Vol 3 appendix B.
        assert_eq!(VmcsField::GuestRip.encoding(), 0x681e);
        assert_eq!(VmcsField::ExitReason.encoding(), 0x4402);
        assert_eq!(VmcsField::EptPointer.width(), FieldWidth::Bits64);
        assert_eq!(VmcsField::HostRsp.field_type(), FieldType::Host);
        assert_eq!(
            VmcsField::ExitQualification.field_type(),
            FieldType::ExitInformation
        );
        assert_eq!(VmcsField::Vpid.mask(), 0xffff);
        assert!(VmcsField::COUNT < usize::from(ABSENT));
    }
}
