//! Guests of a few instructions on the host's KVM. Where `/dev/kvm` cannot be opened each test says that it was
//! skipped.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use guestmem::{Gpa, GuestRam};
use vcpu::cpuid::{CpuModel, HostVector, ModelConfig, model};
use vcpu::{
    Attention, Engine, EngineError, InterruptFault, MpState, NestedVirt, PendingEvent, Platform,
    RunExit, Vcpu, VcpuState, Vm, VmConfig, Wake, reset,
};
use x86defs::rflags;
use x86defs::segment::Selector;

use crate::KvmEngine;
use crate::speed::long_mode;

/// RAM ends here; what follows up to 2 MByte is mapped by the guests' page tables and is MMIO.
const RAM_END: u64 = 0x10_0000;
const CODE: u64 = 0x8000;
/// A write to this port stops the vCPU.
const STOP_PORT: u16 = 0xf4;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Access {
    Out(u16, u8, u32),
    In(u16, u8),
    Write(u64, Vec<u8>),
    Read(u64, usize),
}

/// Records accesses; ports read as their number, memory as 11h, 22h, ...
struct Board {
    log: Arc<Mutex<Vec<Access>>>,
    attention: Attention,
}

impl Board {
    fn note(&self, access: Access) {
        self.log
            .lock()
            .expect("no test panics with it")
            .push(access);
    }
}

impl Platform for Board {
    fn pio_read(&mut self, port: u16, size_bytes: u8, _: u64) -> u32 {
        self.note(Access::In(port, size_bytes));
        if port == STOP_PORT {
            self.attention.raise(Attention::STOP);
        }
        u32::from(port) | 0xabcd_0000
    }
    fn pio_write(&mut self, port: u16, size_bytes: u8, value: u32, _: u64) {
        self.note(Access::Out(port, size_bytes, value));
        if port == STOP_PORT {
            self.attention.raise(Attention::STOP);
        }
    }
    fn mmio_read(&mut self, gpa: Gpa, data: &mut [u8], _: u64) {
        self.note(Access::Read(gpa.0, data.len()));
        for (byte, n) in data.iter_mut().zip(1..) {
            *byte = 0x11 * n;
        }
    }
    fn mmio_write(&mut self, gpa: Gpa, data: &[u8], _: u64) {
        self.note(Access::Write(gpa.0, data.to_vec()));
    }
    fn apic_msr_read(&mut self, _: u32, _: u64) -> Result<u64, InterruptFault> {
        unreachable!("KVM has an APIC of its own")
    }
    fn apic_msr_write(&mut self, _: u32, _: u64, _: u64) -> Result<(), InterruptFault> {
        unreachable!("KVM has an APIC of its own")
    }
    fn cr8(&mut self) -> u8 {
        unreachable!("KVM has an APIC of its own")
    }
    fn set_cr8(&mut self, _: u8) {
        unreachable!("KVM has an APIC of its own")
    }
    fn interrupt_pending(&mut self) -> bool {
        unreachable!("KVM has an APIC of its own")
    }
    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        unreachable!("KVM has an APIC of its own")
    }
    fn take_nmi(&mut self) -> bool {
        unreachable!("KVM has an APIC of its own")
    }
    fn tsc(&mut self, _: u64) -> u64 {
        unreachable!("KVM has the host's TSC")
    }
    fn set_tsc_offset(&mut self, _: u64) {
        unreachable!("KVM has the host's TSC")
    }
    fn poll(&mut self, _: u64) -> u64 {
        unreachable!("KVM has timers of its own")
    }
    fn idle(&mut self, _: u64, _: Option<u64>) -> Wake {
        unreachable!("KVM waits in the kernel")
    }
}

struct Guest {
    ram: Arc<GuestRam>,
    vm: Arc<dyn Vm>,
    vcpu: Box<dyn Vcpu>,
    attention: Attention,
    log: Arc<Mutex<Vec<Access>>>,
}

fn config(vcpus: u32) -> VmConfig {
    let cpuid = model(
        CpuModel::Max,
        &ModelConfig {
            vcpus,
            nested: NestedVirt::Off,
            tsc_hz: 1_000_000_000,
            crystal_hz: 25_000_000,
            host: HostVector::detect(),
        },
    );
    VmConfig {
        vcpus,
        cpuid,
        nested: NestedVirt::Off,
        tsc_hz: 1_000_000_000,
    }
}

fn engine() -> Option<KvmEngine> {
    match KvmEngine::open() {
        Ok(engine) => Some(engine),
        Err(why) => {
            eprintln!("skipped: {why}");
            None
        }
    }
}

impl Guest {
    /// A VM with `vcpus` vCPUs of which number `index` is made, `code` at [`CODE`].
    fn new(vcpus: u32, index: u32, code: &[u8]) -> Option<Self> {
        let engine = engine()?;
        let ram = Arc::new(GuestRam::new(&[(Gpa(0), RAM_END)]).expect("a MByte"));
        ram.write(Gpa(CODE), code).expect("code fits");
        let vm = engine
            .create_vm(&config(vcpus), Arc::clone(&ram))
            .expect("a VM");
        let attention = Attention::new();
        let log = Arc::new(Mutex::new(Vec::new()));
        let board = Board {
            log: Arc::clone(&log),
            attention: attention.clone(),
        };
        let vcpu = vm
            .create_vcpu(index, Box::new(board), attention.clone())
            .expect("a vCPU");
        Some(Self {
            ram,
            vm,
            vcpu,
            attention,
            log,
        })
    }

    /// Starts at [`CODE`] in 64-bit mode, with a stack.
    fn long(code: &[u8]) -> Option<Self> {
        let mut g = Self::new(1, 0, code)?;
        let mut s = long_mode(&g.ram, CODE);
        s.gpr[4] = 0x7000;
        g.set(&s);
        Some(g)
    }

    /// Starts at 0:[`CODE`] in real mode.
    fn real(code: &[u8]) -> Option<Self> {
        let mut g = Self::new(1, 0, code)?;
        g.set(&real_mode());
        Some(g)
    }

    fn set(&mut self, s: &VcpuState) {
        self.vcpu.set_state(s).expect("a state KVM takes");
    }

    fn run(&mut self) -> RunExit {
        self.vcpu.run().expect("no error of the host")
    }

    fn state(&mut self) -> VcpuState {
        self.vcpu.state().expect("a state")
    }

    fn log(&self) -> Vec<Access> {
        self.log.lock().expect("no test panics with it").clone()
    }
}

fn real_mode() -> VcpuState {
    let mut s = reset(true);
    s.segments[1].selector = Selector(0);
    s.segments[1].base = 0;
    s.rip = CODE;
    s.gpr[4] = 0x7000;
    s
}

#[test]
fn ports_of_every_width_reach_the_board() {
    let code = [
        0xb0, 0x41, // mov al, 41h
        0x66, 0xba, 0xf8, 0x03, // mov dx, 3f8h
        0xee, // out dx, al
        0x66, 0xed, // in ax, dx
        0x66, 0xef, // out dx, ax
        0xed, // in eax, dx
        0xef, // out dx, eax
        0xe6, 0xf4, // out f4h, al
    ];
    let Some(mut g) = Guest::long(&code) else {
        return;
    };
    assert_eq!(g.run(), RunExit::Stopped);
    assert_eq!(
        g.log(),
        [
            Access::Out(0x3f8, 1, 0x41),
            Access::In(0x3f8, 2),
            Access::Out(0x3f8, 2, 0x03f8),
            Access::In(0x3f8, 4),
            Access::Out(0x3f8, 4, 0xabcd_03f8),
            Access::Out(STOP_PORT, 1, 0xf8),
        ]
    );
}

#[test]
fn string_ports_move_item_by_item() {
    let code = [
        0xbe, 0x00, 0x90, 0x00, 0x00, // mov esi, 9000h
        0xb9, 0x03, 0x00, 0x00, 0x00, // mov ecx, 3
        0x66, 0xba, 0x80, 0x00, // mov dx, 80h
        0xfc, // cld
        0xf3, 0x6e, // rep outsb
        0xbf, 0x00, 0x91, 0x00, 0x00, // mov edi, 9100h
        0xb9, 0x02, 0x00, 0x00, 0x00, // mov ecx, 2
        0x66, 0xf3, 0x6d, // rep insw
        0xe6, 0xf4, // out f4h, al
    ];
    let Some(mut g) = Guest::long(&code) else {
        return;
    };
    g.ram.write(Gpa(0x9000), b"abc").expect("in RAM");
    assert_eq!(g.run(), RunExit::Stopped);
    let mut log = g.log();
    assert!(matches!(log.pop(), Some(Access::Out(STOP_PORT, 1, _))));
    // The kernel may read ahead on input, never on output.
    assert_eq!(
        log[..3],
        [
            Access::Out(0x80, 1, 0x61),
            Access::Out(0x80, 1, 0x62),
            Access::Out(0x80, 1, 0x63),
        ]
    );
    assert!(log[3..].iter().all(|a| *a == Access::In(0x80, 2)));
    let mut words = [0; 4];
    g.ram.read(Gpa(0x9100), &mut words).expect("in RAM");
    assert_eq!(words, [0x80, 0, 0x80, 0]);
    let s = g.state();
    assert_eq!((s.gpr[1], s.gpr[6], s.gpr[7]), (0, 0x9003, 0x9104));
}

#[test]
fn memory_outside_ram_reaches_the_board() {
    let code = [
        0xbb, 0x10, 0x00, 0x18, 0x00, // mov ebx, 180010h
        0x48, 0x8b, 0x03, // mov rax, [rbx]
        0x88, 0x63, 0x01, // mov [rbx+1], ah
        0x66, 0x89, 0x43, 0x02, // mov [rbx+2], ax
        0x48, 0x89, 0x43, 0x08, // mov [rbx+8], rax
        0x0f, 0xb6, 0x4b, 0x05, // movzx ecx, byte [rbx+5]
        0xe6, 0xf4, // out f4h, al
    ];
    let Some(mut g) = Guest::long(&code) else {
        return;
    };
    assert_eq!(g.run(), RunExit::Stopped);
    let all = vec![0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88];
    assert_eq!(
        g.log(),
        [
            Access::Read(0x18_0010, 8),
            Access::Write(0x18_0011, vec![0x22]),
            Access::Write(0x18_0012, vec![0x11, 0x22]),
            Access::Write(0x18_0018, all),
            Access::Read(0x18_0015, 1),
            Access::Out(STOP_PORT, 1, 0x11),
        ]
    );
    assert_eq!(g.state().gpr[1], 0x11);
}

/// The state after a stop is behind the instruction that made the board ask for it.
#[test]
fn a_stop_leaves_the_instruction_complete() {
    let code = [0xe5, 0xf4, 0xeb, 0xfe]; // in eax, f4h; jmp $
    let Some(mut g) = Guest::long(&code) else {
        return;
    };
    assert_eq!(g.run(), RunExit::Stopped);
    let s = g.state();
    assert_eq!(s.rip, CODE + 2);
    assert_eq!(s.gpr[0], 0xabcd_00f4);
    assert_eq!(g.attention.get(), 0);
}

#[test]
fn real_mode_runs_too() {
    let code = [
        0xb8, 0x34, 0x12, // mov ax, 1234h
        0xe7, 0x80, // out 80h, ax
        0xe6, 0xf4, // out f4h, al
    ];
    let Some(mut g) = Guest::real(&code) else {
        return;
    };
    assert_eq!(g.run(), RunExit::Stopped);
    assert_eq!(
        g.log(),
        [
            Access::Out(0x80, 2, 0x1234),
            Access::Out(STOP_PORT, 1, 0x34)
        ]
    );
}

/// #UD with an empty IDT: the fault, its double fault and the third end in shutdown (SDM Vol 3 6.15).
#[test]
fn a_triple_fault_is_a_shutdown() {
    let Some(mut g) = Guest::long(&[0x0f, 0x0b]) else {
        return;
    };
    let mut s = g.state();
    s.idtr.limit = 0;
    g.set(&s);
    assert_eq!(g.run(), RunExit::Shutdown);
    assert_eq!(g.state().mp_state, MpState::Shutdown);
    assert_eq!(g.run(), RunExit::Shutdown);
    // A new state ends it.
    g.ram.write(Gpa(CODE), &[0xe6, 0xf4]).expect("in RAM");
    let s = long_mode(&g.ram, CODE);
    g.set(&s);
    assert_eq!(g.run(), RunExit::Stopped);
}

/// Stops `guest` from another thread `times` times, at moments that differ. Each must come at once.
fn stop_many_times(mut g: Guest, times: u32) -> Guest {
    let kick = g.vcpu.kicker();
    let attention = g.attention.clone();
    let mut slowest = Duration::ZERO;
    for n in 0..times {
        let ended = std::thread::scope(|scope| {
            let kicker = scope.spawn(|| {
                let start = Instant::now();
                let wait = Duration::from_micros(u64::from(n) * 37 % 500);
                while start.elapsed() < wait {
                    std::hint::spin_loop();
                }
                attention.raise(Attention::STOP);
                kick();
                Instant::now()
            });
            assert_eq!(g.run(), RunExit::Stopped);
            let end = Instant::now();
            end.saturating_duration_since(kicker.join().expect("it only kicks"))
        });
        slowest = slowest.max(ended);
        assert_eq!(attention.get() & Attention::STOP, 0);
    }
    eprintln!("slowest of {times} stops: {slowest:?}");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    g
}

#[test]
fn a_spinning_vcpu_is_stopped_in_bounded_time() {
    let Some(g) = Guest::long(&[0xeb, 0xfe]) else {
        return;
    };
    let mut g = stop_many_times(g, 300);
    assert_eq!(g.state().rip, CODE);
}

#[test]
fn a_halted_vcpu_is_stopped_in_bounded_time() {
    let Some(g) = Guest::long(&[0xf4, 0xeb, 0xfd]) else {
        return;
    };
    let mut g = stop_many_times(g, 100);
    let s = g.state();
    assert_eq!(s.mp_state, MpState::Halted);
    assert_eq!(s.rip, CODE + 1);
}

#[test]
fn a_vcpu_that_waits_for_its_sipi_is_stopped_in_bounded_time() {
    let Some(mut g) = Guest::new(2, 1, &[]) else {
        return;
    };
    g.set(&reset(false));
    assert_eq!(g.state().mp_state, MpState::WaitForSipi);
    let mut g = stop_many_times(g, 100);
    assert_eq!(g.state().mp_state, MpState::WaitForSipi);
}

#[test]
fn a_stop_before_the_run_is_not_lost() {
    let Some(mut g) = Guest::long(&[0xeb, 0xfe]) else {
        return;
    };
    g.attention.raise(Attention::STOP);
    g.vcpu.kicker()();
    assert_eq!(g.run(), RunExit::Stopped);
}

#[test]
fn a_kicker_may_outlive_its_vcpu() {
    let Some(g) = Guest::long(&[0xf4]) else {
        return;
    };
    let kick = g.vcpu.kicker();
    drop(g);
    kick();
}

/// A board's interrupt line through the kernel's PIC: vector 20h + 3 in real mode.
#[test]
fn an_interrupt_line_wakes_a_halted_guest() {
    let code = [
        0xb0, 0x11, 0xe6, 0x20, // ICW1: edge triggered, cascade, ICW4 follows
        0xb0, 0x20, 0xe6, 0x21, // ICW2: vectors from 20h
        0xb0, 0x04, 0xe6, 0x21, // ICW3: slave on line 2
        0xb0, 0x01, 0xe6, 0x21, // ICW4: 8086 mode
        0xb0, 0xf7, 0xe6, 0x21, // mask all but line 3
        0xe6, 0x80, // tell the board
        0xfb, // sti
        0xf4, // hlt
        0xeb, 0xfd, // jmp back to hlt
    ];
    let Some(mut g) = Guest::real(&code) else {
        return;
    };
    // Handler: out f4h, al; iret.
    g.ram
        .write(Gpa(0x6000), &[0xe6, 0xf4, 0xcf])
        .expect("in RAM");
    g.ram
        .write(Gpa(0x23 * 4), &[0x00, 0x60, 0x00, 0x00])
        .expect("in RAM");
    let (vm, log) = (Arc::clone(&g.vm), Arc::clone(&g.log));
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while log.lock().expect("no test panics with it").is_empty() {
                std::thread::sleep(Duration::from_millis(1));
            }
            vm.set_irq_line(3, true);
            vm.set_irq_line(3, false);
        });
        assert_eq!(g.run(), RunExit::Stopped);
    });
    assert_eq!(g.log().last(), Some(&Access::Out(STOP_PORT, 1, 0xf7)));
}

/// Two vCPUs run at the same time and see each other's stores.
#[test]
fn two_vcpus_share_memory() {
    // mov byte [9000h], 1; spin until [9001h] is set; out f4h, al
    let first = [
        0xc6, 0x04, 0x25, 0x00, 0x90, 0x00, 0x00, 0x01, // mov byte [9000h], 1
        0x80, 0x3c, 0x25, 0x01, 0x90, 0x00, 0x00, 0x00, // cmp byte [9001h], 0
        0x74, 0xf6, // jz back
        0xe6, 0xf4, // out f4h, al
    ];
    let second = [
        0x80, 0x3c, 0x25, 0x00, 0x90, 0x00, 0x00, 0x00, // cmp byte [9000h], 0
        0x74, 0xf6, // jz back
        0xc6, 0x04, 0x25, 0x01, 0x90, 0x00, 0x00, 0x01, // mov byte [9001h], 1
        0xe6, 0xf4, // out f4h, al
    ];
    let Some(mut g) = Guest::new(2, 0, &first) else {
        return;
    };
    g.ram.write(Gpa(CODE + 0x100), &second).expect("in RAM");
    let attention = Attention::new();
    let board = Board {
        log: Arc::clone(&g.log),
        attention: attention.clone(),
    };
    let mut other =
        g.vm.create_vcpu(1, Box::new(board), attention)
            .expect("a second vCPU");
    let s = long_mode(&g.ram, CODE);
    g.set(&s);
    other
        .set_state(&long_mode(&g.ram, CODE + 0x100))
        .expect("a state KVM takes");
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| other.run().expect("no error of the host"));
        assert_eq!(g.run(), RunExit::Stopped);
        assert_eq!(thread.join().expect("no panic"), RunExit::Stopped);
    });
}

/// Every field of the state comes back as it was put in.
#[test]
fn a_state_makes_the_round_trip() {
    let Some(mut g) = Guest::long(&[0xf4]) else {
        return;
    };
    let mut s = g.state();
    for (n, r) in s.gpr.iter_mut().enumerate() {
        *r = 0x0101_0101_0101_0101 * (n as u64 + 1);
    }
    s.rip = 0x1234;
    s.rflags = rflags::FIXED_1 | rflags::CF | rflags::DF | rflags::IF;
    s.segments[4].base = 0xffff_8000_1234_5000;
    s.segments[5].base = 0x0000_7000_0000_0000;
    s.gdtr.base = 0x5000;
    s.gdtr.limit = 0x37;
    s.idtr.base = 0x6000;
    s.idtr.limit = 0xfff;
    s.system.cr2 = 0xdead_beef;
    s.system.cr8 = 5;
    s.system.dr = [0x1000, 0x2000, 0x3000, 0x4000];
    s.system.dr7 = 0x402;
    // Components x87 and SSE; XMM3 and the control words.
    s.extended.legacy[512] = 3;
    s.extended.legacy[0..2].copy_from_slice(&0x027fu16.to_le_bytes());
    s.extended.legacy[24..28].copy_from_slice(&0x1fa0u32.to_le_bytes());
    s.extended.legacy[160 + 3 * 16..][..16].copy_from_slice(b"sixteen of bytes");
    s.interruptibility.nmi = true;
    s.pending = Some(PendingEvent {
        vector: 14,
        error_code: Some(2),
    });
    for (index, value) in [
        (x86defs::msr::IA32_LSTAR, 0xffff_ffff_8100_0000),
        (x86defs::msr::IA32_STAR, 0x0023_0010_0000_0000),
        (x86defs::msr::IA32_KERNEL_GS_BASE, 0xffff_8880_0000_0000),
        (x86defs::msr::IA32_SYSENTER_CS, 0x10),
        (x86defs::msr::IA32_PAT, 0x0007_0106_0007_0106),
    ] {
        let entry = s.system.msrs.iter_mut().find(|(i, _)| *i == index);
        entry.expect("KVM keeps this MSR").1 = value;
    }
    // A running TSC would not compare.
    s.system.msrs.retain(|(i, _)| *i != x86defs::msr::IA32_TSC);
    g.set(&s);
    let mut got = g.state();
    got.system
        .msrs
        .retain(|(i, _)| *i != x86defs::msr::IA32_TSC);
    assert_eq!(got, s);
    s.mp_state = MpState::Halted;
    s.pending = None;
    s.interruptibility = Default::default();
    g.set(&s);
    let got = g.state();
    assert_eq!(
        (got.mp_state, got.pending, got.interruptibility),
        (s.mp_state, s.pending, s.interruptibility)
    );
}

/// The guest sees what was set, and the state what the guest did.
#[test]
fn registers_reach_the_guest_and_come_back() {
    let code = [
        0x66, 0x0f, 0x6f, 0xc8, // movdqa xmm1, xmm0
        0x48, 0x8d, 0x04, 0x4b, // lea rax, [rbx + rcx * 2]
        0x0f, 0x20, 0xda, // mov rdx, cr3
        0xe6, 0xf4, // out f4h, al
    ];
    let Some(mut g) = Guest::long(&code) else {
        return;
    };
    let mut s = g.state();
    s.system.cr4 |= x86defs::cr::cr4::OSFXSR;
    s.gpr[3] = 1000;
    s.gpr[1] = 17;
    s.extended.legacy[512] |= 2;
    s.extended.legacy[160..176].copy_from_slice(b"0123456789abcdef");
    g.set(&s);
    assert_eq!(g.run(), RunExit::Stopped);
    let got = g.state();
    assert_eq!(got.gpr[0], 1034);
    assert_eq!(got.gpr[2], s.system.cr3);
    assert_eq!(&got.extended.legacy[176..192], b"0123456789abcdef");
    assert_eq!(got.rip, CODE + code.len() as u64);
}

#[test]
fn an_msr_the_host_lacks_is_refused_by_name_unless_zero() {
    let Some(mut g) = Guest::long(&[0xf4]) else {
        return;
    };
    let mut s = g.state();
    s.system.msrs = vec![(0x7777_0001, 0), (0x7777_0002, 0)];
    g.set(&s);
    s.system.msrs.push((0x7777_0003, 9));
    let error = g.vcpu.set_state(&s).expect_err("no such MSR");
    assert!(error.to_string().contains("0x77770003"), "{error}");
}

#[test]
fn what_kvm_cannot_do_is_refused_with_advice() {
    let Some(engine) = engine() else {
        return;
    };
    let ram = |base, size| Arc::new(GuestRam::new(&[(Gpa(base), size)]).expect("RAM"));
    let refused = |config: &VmConfig, ram| match engine.create_vm(config, ram) {
        Err(EngineError::Unsupported { what, advice, .. }) => format!("{what}; {advice}"),
        Err(e) => panic!("another error: {e}"),
        Ok(_) => panic!("not refused"),
    };
    let small = || ram(0, 0x1000);
    assert!(refused(&config(1), ram(0xfeff_0000, 0x1_0000)).contains("0xfeffc000"));
    assert!(refused(&config(0), small()).contains("0 vCPUs"));
    let max = engine.capabilities().max_vcpus;
    assert!(refused(&config(max + 1), small()).contains("vCPUs"));
    let with = |nested| VmConfig {
        nested,
        ..config(1)
    };
    assert!(refused(&with(NestedVirt::Amd), small()).contains("AMD-V"));
    if !engine.capabilities().nested_intel {
        assert!(refused(&with(NestedVirt::Intel), small()).contains("VT-x"));
    }
    let vm = engine.create_vm(&config(1), small()).expect("a VM");
    let attention = Attention::new();
    let board = Board {
        log: Arc::default(),
        attention: attention.clone(),
    };
    assert!(vm.create_vcpu(1, Box::new(board), attention).is_err());
}
