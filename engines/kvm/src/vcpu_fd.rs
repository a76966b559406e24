//! A vCPU: its run loop and its state.

use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use guestmem::Gpa;
use kvm_bindings as kb;
use kvm_ioctls::{KvmNestedStateBuffer, VcpuFd};
use vcpu::{Attention, EngineError, Platform, RunExit, Vcpu, VcpuState};

use crate::engine::VmInner;
use crate::kick::Kick;
use crate::run_page::{RunPage, kvm_run};
use crate::{host, msrs, state, unsupported};

/// Instructions executed, as [`Platform`] is told: KVM counts none.
const UNCOUNTED: u64 = 0;

/// A vCPU of KVM. The descriptor is closed before the VM is let go.
pub(crate) struct KvmVcpu {
    index: u32,
    fd: VcpuFd,
    kick: Arc<Kick>,
    platform: Box<dyn Platform>,
    attention: Attention,
    /// The last exit was an access whose result the kernel takes at the next KVM_RUN; until then RIP and
    /// registers are those before the instruction.
    access_open: bool,
    /// The processor is in shutdown; KVM has no such state.
    shutdown: bool,
    vm: Arc<VmInner>,
}

impl KvmVcpu {
    pub(crate) fn new(
        index: u32,
        fd: VcpuFd,
        run_page_bytes: usize,
        vm: Arc<VmInner>,
        platform: Box<dyn Platform>,
        attention: Attention,
    ) -> Result<Self, EngineError> {
        let page = RunPage::map(fd.as_raw_fd(), run_page_bytes)?;
        Ok(Self {
            index,
            fd,
            kick: Arc::new(Kick::new(page)),
            platform,
            attention,
            access_open: false,
            shutdown: false,
            vm,
        })
    }

    /// Refuses when the guest is in VMX operation, which [`VcpuState`] does not hold.
    fn check_outside_vmx(&self) -> Result<(), EngineError> {
        if !self.vm.nested_state {
            return Ok(());
        }
        let mut nested = KvmNestedStateBuffer::empty();
        self.fd
            .nested_state(&mut nested)
            .map_err(host("reading the nested state"))?;
        // SAFETY: the engine shows guests VT-x only, for which KVM fills in this member; all bits are valid.
        let vmxon_pointer = unsafe { nested.hdr.vmx.vmxon_pa };
        if u32::from(nested.format) == kb::KVM_STATE_NESTED_FORMAT_VMX && vmxon_pointer != u64::MAX
        {
            return Err(unsupported(
                "take the state of a guest whose hypervisor is on (VMX operation)",
                "stop the hypervisor in the guest first",
            ));
        }
        Ok(())
    }

    fn stuck(&self, why: String) -> EngineError {
        EngineError::Stuck {
            vcpu: self.index,
            why,
        }
    }

    /// Runs until the attention asks to stop or the guest cannot go on.
    fn run_until_exit(&mut self) -> Result<RunExit, EngineError> {
        loop {
            // Cleared first, looked at second: see `kick`.
            self.kick.page.set_immediate_exit(false);
            if self.attention.get() & Attention::STOP != 0 {
                if let ControlFlow::Break(exit) = self.close_access()? {
                    return Ok(exit);
                }
                self.attention.clear(Attention::STOP);
                return Ok(RunExit::Stopped);
            }
            if let ControlFlow::Break(exit) = self.enter()? {
                return Ok(exit);
            }
        }
    }

    /// Lets the kernel take the result of the last access without running the guest further, so that the
    /// state is at an instruction boundary.
    fn close_access(&mut self) -> Result<ControlFlow<RunExit>, EngineError> {
        // An access may be split and ask again: a string instruction, a page crossing. The kernel bounds it by
        // the instruction.
        while self.access_open {
            self.kick.page.set_immediate_exit(true);
            if let ControlFlow::Break(exit) = self.enter()? {
                return Ok(ControlFlow::Break(exit));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// One KVM_RUN and what it asks for.
    fn enter(&mut self) -> Result<ControlFlow<RunExit>, EngineError> {
        self.access_open = false;
        match kvm_run(&self.fd) {
            Ok(()) => self.dispatch(),
            // A signal, or a vCPU that waited for its start-up IPI and was woken.
            Err(libc::EINTR | libc::EAGAIN) => Ok(ControlFlow::Continue(())),
            Err(errno) => Err(EngineError::Host {
                what: "running a vCPU",
                source: std::io::Error::from_raw_os_error(errno),
            }),
        }
    }

    fn dispatch(&mut self) -> Result<ControlFlow<RunExit>, EngineError> {
        let page = &self.kick.page;
        match page.exit_reason() {
            kb::KVM_EXIT_IO => self.port_access(),
            kb::KVM_EXIT_MMIO => self.memory_access(),
            kb::KVM_EXIT_INTR | kb::KVM_EXIT_IRQ_WINDOW_OPEN => Ok(ControlFlow::Continue(())),
            kb::KVM_EXIT_SHUTDOWN => {
                self.shutdown = true;
                Ok(ControlFlow::Break(RunExit::Shutdown))
            }
            kb::KVM_EXIT_FAIL_ENTRY => {
                let why = format!(
                    "the processor refused to enter the guest (hardware reason {:#x} on host CPU {})",
                    page.quad(0),
                    page.word(2)
                );
                Err(self.stuck(why))
            }
            kb::KVM_EXIT_INTERNAL_ERROR => {
                let why = self.internal_error();
                Err(self.stuck(why))
            }
            kb::KVM_EXIT_UNKNOWN => {
                let why = format!(
                    "KVM does not know the hardware's exit reason {:#x}",
                    page.quad(0)
                );
                Err(self.stuck(why))
            }
            kb::KVM_EXIT_SYSTEM_EVENT => {
                let why = format!("KVM reports system event {}", page.word(0));
                Err(self.stuck(why))
            }
            other => {
                let why = format!("KVM stopped with exit reason {other}, which was not asked for");
                Err(self.stuck(why))
            }
        }
    }

    fn port_access(&mut self) -> Result<ControlFlow<RunExit>, EngineError> {
        let page = &self.kick.page;
        let Some(access) = page.port_exit() else {
            return Err(self.stuck("KVM reports a port access of impossible size".into()));
        };
        self.access_open = true;
        let size = access.size_bytes;
        for n in 0..access.count {
            if access.out {
                let value = page.port_item(&access, n);
                self.platform.pio_write(access.port, size, value, UNCOUNTED);
            } else {
                let value = self.platform.pio_read(access.port, size, UNCOUNTED);
                page.set_port_item(&access, n, value);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn memory_access(&mut self) -> Result<ControlFlow<RunExit>, EngineError> {
        let Some(mut access) = self.kick.page.mmio_exit() else {
            return Err(self.stuck("KVM reports a memory access of impossible size".into()));
        };
        self.access_open = true;
        let data = &mut access.data[..access.len];
        if access.write {
            // Where the legacy area reads ROM and writes RAM, KVM has the ROM.
            if self.vm.ram.write(Gpa(access.gpa), data).is_err() {
                self.platform.mmio_write(Gpa(access.gpa), data, UNCOUNTED);
            }
        } else {
            self.platform.mmio_read(Gpa(access.gpa), data, UNCOUNTED);
            self.kick.page.set_mmio_data(access.data);
        }
        Ok(ControlFlow::Continue(()))
    }

    /// What KVM tells of an internal error, and where the guest was.
    fn internal_error(&self) -> String {
        let page = &self.kick.page;
        let suberror = page.word(0);
        let what = match suberror {
            kb::KVM_INTERNAL_ERROR_EMULATION => "it cannot emulate an instruction",
            kb::KVM_INTERNAL_ERROR_SIMUL_EX => "exceptions arose while one was delivered",
            kb::KVM_INTERNAL_ERROR_DELIVERY_EV => "an exit came while an event was delivered",
            kb::KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => {
                "the hardware exited for no known reason"
            }
            _ => "for a reason it does not name",
        };
        let mut text = format!("KVM internal error {suberror}: {what}");
        let words = page.word(1).min(16) as usize;
        // For a failed emulation with this flag, the data hold the instruction: length and 15 bytes.
        let with_bytes = suberror == kb::KVM_INTERNAL_ERROR_EMULATION
            && words >= 3
            && page.quad(1) & u64::from(kb::KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES)
                != 0;
        if with_bytes {
            let bytes = page.bytes::<16>(16);
            let len = usize::from(bytes[0]).min(15);
            text += &format!(", bytes {:02x?}", &bytes[1..=len]);
        } else {
            for n in 0..words {
                text += &format!(", {:#x}", page.quad(1 + n));
            }
        }
        if let (Ok(regs), Ok(sregs)) = (self.fd.get_regs(), self.fd.get_sregs()) {
            text += &format!(
                ", at {:x}:{:#x}, CR0 {:#x}, CR3 {:#x}, CR4 {:#x}",
                sregs.cs.selector, regs.rip, sregs.cr0, sregs.cr3, sregs.cr4
            );
        }
        text
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self) -> Result<RunExit, EngineError> {
        if self.shutdown {
            return Ok(RunExit::Shutdown);
        }
        let kick = Arc::clone(&self.kick);
        let _announced = kick.announce();
        self.run_until_exit()
    }

    fn kicker(&self) -> Box<dyn Fn() + Send + Sync> {
        let kick = Arc::clone(&self.kick);
        Box::new(move || kick.kick())
    }

    fn state(&mut self) -> Result<VcpuState, EngineError> {
        self.check_outside_vmx()?;
        let mut s = VcpuState::default();
        let fd = &self.fd;
        state::from_regs(&mut s, &fd.get_regs().map_err(host("reading registers"))?);
        let sregs = fd.get_sregs().map_err(host("reading system registers"))?;
        state::from_sregs(&mut s, &sregs);
        s.system.xcr0 = match fd.get_xcrs() {
            Ok(xcrs) => state::xcr0(&xcrs),
            // A guest without XSAVE has none; it is as after RESET.
            Err(_) => 1,
        };
        let xsave = fd.get_xsave().map_err(host("reading the XSAVE area"))?;
        s.extended = state::from_xsave(&xsave);
        let debug = fd
            .get_debug_regs()
            .map_err(host("reading debug registers"))?;
        state::from_debugregs(&mut s, &debug);
        let mp = fd
            .get_mp_state()
            .map_err(host("reading the multiprocessor state"))?;
        s.mp_state = if self.shutdown {
            vcpu::MpState::Shutdown
        } else {
            state::from_mp_state(mp.mp_state)
        };
        let events = fd
            .get_vcpu_events()
            .map_err(host("reading pending events"))?;
        state::from_events(&mut s, &events);
        s.system.msrs = msrs::read(fd, sregs.apic_base)?;
        Ok(s)
    }

    fn set_state(&mut self, s: &VcpuState) -> Result<(), EngineError> {
        let fd = &self.fd;
        let mut sregs = fd.get_sregs().map_err(host("reading system registers"))?;
        state::to_sregs(s, &mut sregs);
        if let Some(base) = msrs::apic_base(&s.system.msrs) {
            sregs.apic_base = base;
        }
        fd.set_sregs(&sregs)
            .map_err(host("setting system registers"))?;
        fd.set_regs(&state::to_regs(s))
            .map_err(host("setting registers"))?;
        if s.system.xcr0 != 1 {
            fd.set_xcrs(&state::to_xcrs(s.system.xcr0))
                .map_err(host("setting XCR0"))?;
        }
        let xsave = state::to_xsave(&s.extended);
        // SAFETY: the structure is 4096 bytes, all the kernel reads unless a guest was given state components
        // that must be asked for (AMX), which this engine never does.
        unsafe { fd.set_xsave(&xsave) }.map_err(host("setting the XSAVE area"))?;
        msrs::write(fd, &s.system.msrs)?;
        fd.set_debug_regs(&state::to_debugregs(s))
            .map_err(host("setting debug registers"))?;
        fd.set_vcpu_events(&state::to_events(s))
            .map_err(host("setting pending events"))?;
        fd.set_mp_state(kb::kvm_mp_state {
            mp_state: state::to_mp_state(s.mp_state),
        })
        .map_err(host("setting the multiprocessor state"))?;
        self.shutdown = s.mp_state == vcpu::MpState::Shutdown;
        self.access_open = false;
        Ok(())
    }
}
