use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use bus::{BusBuilder, Clock, RealTime};
use chipset::fabric::FabricConfig;

use super::*;

const TSC_HZ: u64 = 1_000_000_000;
/// The APIC timer's input clock: one tick is 40 ns.
const APIC_HZ: u64 = 25_000_000;
const SVR: u64 = 0xf0;
const LVT_TIMER: u64 = 0x320;
const INITIAL_COUNT: u64 = 0x380;
const DIVIDE: u64 = 0x3e0;
const ICR_LOW: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;

/// A board of interrupt controllers only, and its vCPUs' platforms.
fn platforms(mode: ClockMode, vcpus: u32) -> Vec<SoftPlatform> {
    platforms_on(Clock::new(mode), vcpus)
}

fn platforms_on(clock: Clock, vcpus: u32) -> Vec<SoftPlatform> {
    let fabric = InterruptFabric::new(&FabricConfig {
        apic_ids: (0..vcpus).collect(),
        bus_hz: APIC_HZ,
        tsc_hz: TSC_HZ,
        physical_address_bits: 39,
        x2apic: true,
        tsc_deadline: true,
    });
    let lines: Vec<Arc<VcpuLine>> = (0..vcpus).map(|_| Arc::default()).collect();
    for (vcpu, line) in lines.iter().enumerate() {
        fabric.connect(vcpu, Arc::clone(line) as _);
    }
    let board = Arc::new(Board::new(
        BusBuilder::new().build(),
        clock,
        Some(Arc::clone(&fabric)),
        lines,
    ));
    (0..vcpus as usize)
        .map(|i| SoftPlatform::new(i, Arc::clone(&board), Arc::clone(&fabric), TSC_HZ))
        .collect()
}

fn platform(mode: ClockMode) -> SoftPlatform {
    platforms(mode, 1).remove(0)
}

fn write_apic(p: &mut SoftPlatform, register: u64, value: u32) {
    let page = p.apic_page.expect("xAPIC mode");
    p.mmio_write(page.offset(register), &value.to_le_bytes(), 0);
}

/// Enables the local APIC and starts its timer, one shot, divided by 1, vector 40h.
fn start_timer(p: &mut SoftPlatform, count: u32) {
    write_apic(p, SVR, 0x1ff);
    write_apic(p, DIVIDE, 0b1011);
    write_apic(p, LVT_TIMER, 0x40);
    write_apic(p, INITIAL_COUNT, count);
}

/// Executes until an interrupt is pending; returns the number of instructions by then.
fn run_until_interrupt(p: &mut SoftPlatform) -> u64 {
    let mut retired = 0;
    loop {
        let slice = p.poll(retired);
        if p.interrupt_pending() {
            return retired;
        }
        retired += slice;
    }
}

#[test]
fn in_virtual_mode_the_timer_fires_at_the_exact_instruction() {
    let mut p = platform(ClockMode::Virtual);
    p.poll(0);
    // 12,345 ticks of 40 ns.
    start_timer(&mut p, 12_345);
    assert_eq!(run_until_interrupt(&mut p), 12_345 * 40);
    assert_eq!(p.acknowledge_interrupt(), Some(0x40));
    assert_eq!(p.acknowledge_interrupt(), None);
}

#[test]
fn in_virtual_mode_idle_jumps_to_the_deadline_and_time_goes_on_from_there() {
    let mut p = platform(ClockMode::Virtual);
    let begin = Instant::now();
    // 100 s of guest time.
    start_timer(&mut p, 2_500_000_000);
    assert_eq!(p.idle(500, None), Wake::Event);
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert!(p.interrupt_pending());
    let now = p.tsc(500);
    assert_eq!(now, 100_000_000_000);
    // The 200 instructions after the jump take 200 ns.
    assert_eq!(p.tsc(700), now + 200);
}

#[test]
fn in_host_mode_idle_sleeps_until_the_timer() {
    let mut p = platform(ClockMode::Host);
    let begin = Instant::now();
    // 20 ms.
    start_timer(&mut p, 500_000);
    assert_eq!(p.idle(0, None), Wake::Event);
    assert!(begin.elapsed() >= Duration::from_millis(20));
    assert_eq!(p.acknowledge_interrupt(), Some(0x40));
}

/// What an engine waits for itself, at a time of the TSC, ends idle like a deadline of the board.
#[test]
fn idle_ends_at_a_time_of_the_tsc() {
    let mut p = platform(ClockMode::Host);
    // 20 ms.
    let until = p.tsc(0) + 20_000_000;
    assert_eq!(p.idle(0, Some(until)), Wake::Event);
    assert!(p.tsc(0) >= until);
    let mut p = platform(ClockMode::Virtual);
    p.tsc_hz = 3_000_000_000;
    start_timer(&mut p, 4_000_000_000);
    let begin = Instant::now();
    // 100 s of guest time, and a third of a nanosecond.
    assert_eq!(p.idle(500, Some(300_000_000_001)), Wake::Event);
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert_eq!(p.tsc(500), 300_000_000_003, "the first nanosecond after it");
    assert!(!p.interrupt_pending(), "the timer is due later");
    // One that is over does not wait at all.
    assert_eq!(p.idle(500, Some(5)), Wake::Event);
    assert_eq!(p.tsc(500), 300_000_000_003);
    assert_eq!(p.idle(500, None), Wake::Event);
    assert!(p.interrupt_pending());
}

/// Virtual time stops at what any idle vCPU waits for, whichever moves it.
#[test]
fn idle_vcpus_wait_for_times_of_their_own() {
    let pair = platforms(ClockMode::Virtual, 2);
    let first = Arc::clone(&pair[0].line);
    // 1 s apart, in turn.
    let threads: Vec<_> = pair
        .into_iter()
        .map(|mut p| {
            let first = Arc::clone(&first);
            thread::spawn(move || {
                for round in 1..=50 {
                    let until = (2 * round + p.index as u64) * 1_000_000_000;
                    while p.tsc(0) < until {
                        assert_eq!(p.idle(0, Some(until)), Wake::Event);
                    }
                    assert_eq!(p.tsc(0), until, "vCPU {} in round {round}", p.index);
                }
                // The first one waits for the last one's end: time stands still while one runs.
                match p.index {
                    0 => assert_eq!(p.idle(0, None), Wake::Stop),
                    _ => first.stop(),
                }
            })
        })
        .collect();
    for t in threads {
        t.join().expect("no panic");
    }
}

#[test]
fn a_slice_in_host_mode_is_shorter_when_something_is_due() {
    let mut p = platform(ClockMode::Host);
    assert_eq!(p.poll(0), HOST_SLICE);
    // 100 us at 8 ns an instruction are at most 12,500 instructions.
    start_timer(&mut p, 2_500);
    let slice = p.poll(0);
    assert!((HOST_SLICE_MIN..=12_500).contains(&slice), "{slice}");
}

#[test]
fn the_tsc_follows_instructions_in_virtual_mode() {
    let mut p = platform(ClockMode::Virtual);
    assert_eq!(p.tsc(0), 0);
    assert_eq!(p.tsc(123), 123);
    p.poll(1_000);
    assert_eq!(p.tsc(1_001), 1_001);
    // It never goes back.
    assert_eq!(p.tsc(900), 1_001);
    p.tsc_hz = 3_000_000_000;
    assert_eq!(p.tsc(2_000), 6_000);
}

#[test]
fn the_tsc_deadline_counts_the_guests_offset() {
    const TSC_DEADLINE_MODE: u32 = 1 << 18;
    let mut p = platform(ClockMode::Virtual);
    write_apic(&mut p, SVR, 0x1ff);
    write_apic(&mut p, LVT_TIMER, 0x41 | TSC_DEADLINE_MODE);
    // The guest's TSC is 1,000,000 ahead.
    p.set_tsc_offset(1_000_000);
    p.apic_msr_write(x86defs::msr::IA32_TSC_DEADLINE, 1_005_000, 0)
        .expect("the MSR is there");
    assert_eq!(run_until_interrupt(&mut p), 5_000);
}

#[test]
fn the_apic_page_follows_its_base_and_mode() {
    const APIC_BASE: u32 = x86defs::msr::IA32_APIC_BASE;
    let mut p = platform(ClockMode::Host);
    assert_eq!(p.apic_page, Some(Gpa(0xfee0_0000)));
    let base = p.apic_msr_read(APIC_BASE, 0).expect("always there");
    p.apic_msr_write(APIC_BASE, (base & 0xfff) | 0xfed0_0000, 0)
        .expect("an aligned page");
    assert_eq!(p.apic_page, Some(Gpa(0xfed0_0000)));
    // x2APIC MSRs fault in xAPIC mode and work in x2APIC mode (SDM Vol 3 12.12.2).
    assert_eq!(p.apic_msr_read(0x803, 0), Err(InterruptFault));
    p.apic_msr_write(APIC_BASE, base | 1 << 10, 0)
        .expect("x2APIC mode");
    assert_eq!(p.apic_page, None);
    assert!(p.apic_msr_read(0x803, 0).is_ok());
    // Back to xAPIC mode directly is #GP.
    assert_eq!(p.apic_msr_write(APIC_BASE, base, 0), Err(InterruptFault));
    assert_eq!(p.apic_page, None);
}

#[test]
fn cr8_is_the_task_priority() {
    let mut p = platform(ClockMode::Host);
    p.set_cr8(9);
    assert_eq!(p.cr8(), 9);
    let page = p.apic_page.expect("xAPIC mode");
    let mut tpr = [0; 4];
    p.mmio_read(page.offset(0x80), &mut tpr, 0);
    assert_eq!(u32::from_le_bytes(tpr), 0x90);
}

#[test]
fn an_access_beside_the_apic_page_reads_as_an_empty_bus() {
    let mut p = platform(ClockMode::Host);
    let mut data = [0; 4];
    p.mmio_read(Gpa(0xfee0_1000), &mut data, 0);
    assert_eq!(data, [0xff; 4]);
    assert_eq!(p.pio_read(0x1234, 1, 0), 0xff);
    assert_eq!(p.pio_read(0x1234, 4, 0), 0xffff_ffff);
}

/// Something that waits but cannot be taken (RFLAGS.IF is clear) ends the first idle and not the next, so
/// that CLI; HLT does not spin.
#[test]
fn what_cannot_be_taken_wakes_once() {
    let mut p = platform(ClockMode::Host);
    start_timer(&mut p, 1);
    assert_eq!(p.idle(10, None), Wake::Event);
    p.line.attention().clear(Attention::INTERRUPT);
    assert_eq!(p.idle(10, None), Wake::Event);
    let line = Arc::clone(&p.line);
    let stopper = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        line.stop();
    });
    let begin = Instant::now();
    assert_eq!(p.idle(10, None), Wake::Stop);
    assert!(begin.elapsed() >= Duration::from_millis(10));
    stopper.join().expect("no panic");
}

/// Two vCPUs send each other IPIs and halt in between; every IPI races with the other's going idle. A lost
/// wake-up would hang one of them.
#[test]
fn no_ipi_is_lost_between_check_and_sleep() {
    const ROUNDS: u32 = 5_000;
    let mut pair = platforms(ClockMode::Host, 2);
    for p in &mut pair {
        write_apic(p, SVR, 0x1ff);
    }
    let done = Arc::new(AtomicBool::new(false));
    let lines: Vec<_> = pair.iter().map(|p| Arc::clone(&p.line)).collect();
    let threads: Vec<_> = pair
        .into_iter()
        .map(|mut p| {
            thread::spawn(move || {
                let other = 1 - p.index as u32;
                for round in 0..ROUNDS {
                    if !(p.index == 0 && round == 0) {
                        // HLT until the other's IPI, as an engine does it.
                        let vector = loop {
                            p.line.attention().clear(Attention::INTERRUPT);
                            match p.acknowledge_interrupt() {
                                Some(vector) => break vector,
                                None if p.idle(u64::from(round), None) == Wake::Stop => {
                                    return false;
                                }
                                None => {}
                            }
                        };
                        assert_eq!(vector, 0x50);
                        write_apic(&mut p, 0xb0, 0);
                    }
                    write_apic(&mut p, ICR_HIGH, other << 24);
                    write_apic(&mut p, ICR_LOW, 0x4050);
                }
                true
            })
        })
        .collect();
    let (watched, guard) = (Arc::clone(&done), lines);
    let watchdog = thread::spawn(move || {
        let begin = Instant::now();
        while !watched.load(Ordering::SeqCst) && begin.elapsed() < Duration::from_secs(60) {
            thread::sleep(Duration::from_millis(10));
        }
        guard.iter().for_each(|l| l.stop());
    });
    let finished: Vec<bool> = threads
        .into_iter()
        .map(|t| t.join().expect("no panic"))
        .collect();
    done.store(true, Ordering::SeqCst);
    watchdog.join().expect("no panic");
    assert_eq!(finished, [true, true], "a wake-up was lost");
}

const MS: u64 = 1_000_000;

/// Platforms in host mode, and the real time they have.
fn platforms_of_given_time(vcpus: u32) -> (Vec<SoftPlatform>, Arc<AtomicU64>) {
    let real = Arc::new(AtomicU64::new(0));
    let source = RealTime::Given(Arc::clone(&real));
    let clock = Clock::with_real_time(ClockMode::Host, source);
    (platforms_on(clock, vcpus), real)
}

fn leap(real: &AtomicU64, ns: u64) {
    real.fetch_add(ns, Ordering::SeqCst);
}

/// Current count of the local APIC's timer.
fn timer_count(p: &mut SoftPlatform, retired: u64) -> u64 {
    let page = p.apic_page.expect("xAPIC mode");
    let mut count = [0; 4];
    p.mmio_read(page.offset(0x390), &mut count, retired);
    u64::from(u32::from_le_bytes(count))
}

/// The processor is lost between reads of the TSC and of a device: neither leaps, and both tell the same time.
#[test]
fn a_leap_of_real_time_tears_no_reads_apart() {
    const COUNT: u32 = 100_000_000;
    const LEAP: u64 = 50 * MS;
    let (mut platforms, real) = platforms_of_given_time(1);
    let p = &mut platforms[0];
    start_timer(p, COUNT);
    let mut retired = 0;
    let mut last = p.tsc(retired);
    leap(&real, LEAP);
    let begin = last;
    while last < LEAP {
        retired += 5;
        leap(&real, 200);
        // One tick is 40 ns.
        let timer = 40 * (u64::from(COUNT) - timer_count(p, retired));
        let tsc = p.tsc(retired + 5);
        retired += 5;
        // Twelve such reads stay below the 24.4 us that Linux bears.
        assert!(tsc - last < 2 * 24_400 / 12, "{last} to {tsc}");
        assert!(
            last <= timer + begin + 40 && timer <= tsc,
            "{last}, {timer}, {tsc}"
        );
        last = tsc;
    }
}

/// It is shown at once to a vCPU that has been idle, whatever ended that.
#[test]
fn idle_time_is_real_time() {
    let (mut platforms, real) = platforms_of_given_time(1);
    let p = &mut platforms[0];
    start_timer(p, 500_000);
    // The timer is overdue by 10 ms.
    leap(&real, 30 * MS);
    assert_eq!(p.idle(10, None), Wake::Event);
    assert_eq!(p.tsc(10), 30 * MS);
    assert_eq!(p.acknowledge_interrupt(), Some(0x40));
    leap(&real, 20 * MS);
    // A wake-up by attention, before it sleeps at all.
    p.line.attention().raise(Attention::INTERRUPT);
    assert_eq!(p.idle(20, None), Wake::Event);
    assert_eq!(p.tsc(20), 50 * MS);
}

/// A vCPU that is idle leaves the lag to the one that runs, whenever it wakes.
#[test]
fn an_idle_vcpu_does_not_take_the_lag_from_one_that_runs() {
    let (mut platforms, real) = platforms_of_given_time(2);
    let idle = platforms.pop().expect("two");
    let mut runs = platforms.pop().expect("two");
    let board = Arc::clone(&runs.board);
    board.enter_idle();
    leap(&real, 90 * MS);
    let mut last = 0;
    for look in 1..=1_000 {
        assert_eq!(idle.idle_time(), VirtualTime(last));
        let shown = runs.tsc(look);
        assert!(shown > last && shown - last < 2_000, "{last} to {shown}");
        last = shown;
    }
    // Real time has come, but not what the other shows.
    assert_eq!(
        board.until(VirtualTime(20 * MS)),
        Duration::from_micros(100)
    );
    assert_eq!(
        board.until(VirtualTime(95 * MS)),
        Duration::from_nanos(5 * MS)
    );
    board.enter_idle();
    assert_eq!(board.until(VirtualTime(20 * MS)), Duration::ZERO);
    assert_eq!(idle.idle_time(), VirtualTime(90 * MS));
}

/// It gets its timer once the one that runs has shown that time.
#[test]
fn an_idle_vcpu_wakes_at_the_time_the_others_show() {
    const DUE: u64 = 20 * MS;
    let (mut platforms, real) = platforms_of_given_time(2);
    let mut idle = platforms.pop().expect("two");
    let mut runs = platforms.pop().expect("two");
    start_timer(&mut idle, (DUE / 40) as u32);
    let sleeper = thread::spawn(move || {
        assert_eq!(idle.idle(1, None), Wake::Event);
        assert_eq!(idle.acknowledge_interrupt(), Some(0x40));
        idle.now().0
    });
    while runs.board.busy() != 1 {
        thread::yield_now();
    }
    leap(&real, 90 * MS);
    let mut retired = 0;
    while runs.now().0 <= DUE {
        retired += 100;
        runs.tsc(retired);
        assert!(!sleeper.is_finished() || runs.now().0 > DUE);
    }
    let woken = sleeper.join().expect("no panic");
    assert!(woken > DUE && woken <= runs.tsc(retired), "{woken}");
}

/// A vCPU beside which nobody runs is not held up by those that have not started.
#[test]
fn a_long_lag_does_not_wait_for_others() {
    let (mut platforms, real) = platforms_of_given_time(2);
    let idle = &mut platforms[1];
    start_timer(idle, 500_000);
    leap(&real, 101 * MS);
    assert_eq!(idle.idle(1, None), Wake::Event);
    assert_eq!(idle.acknowledge_interrupt(), Some(0x40));
}

/// While lag is made up time goes faster than instructions take, and slices are shorter.
#[test]
fn a_slice_with_lag_ends_at_the_deadline() {
    let (mut platforms, real) = platforms_of_given_time(1);
    let p = &mut platforms[0];
    assert_eq!(p.poll(0), HOST_SLICE);
    // 1 ms.
    start_timer(p, 25_000);
    leap(&real, 80 * MS);
    let mut retired = 0;
    let mut due = None;
    while due.is_none() {
        let slice = p.poll(retired);
        if p.interrupt_pending() {
            due = Some(p.now().0);
        }
        retired += slice;
    }
    let due = due.expect("the loop ends with it");
    assert!((MS..MS + 200_000).contains(&due), "{due}");
}

/// A vCPU that spins has no reads of clocks to be torn apart while the others have the host's processor.
#[test]
fn a_vcpu_that_gives_way_is_idle_meanwhile() {
    let (mut platforms, real) = platforms_of_given_time(2);
    let mut other = platforms.pop().expect("two");
    let mut spins = platforms.pop().expect("two");
    let board = Arc::clone(&spins.board);
    leap(&real, 30 * MS);
    // The other one runs: the lag is its own to make up.
    spins.give_way(50);
    assert_eq!(other.now(), VirtualTime(1_500 + 50 * 32));
    assert_eq!(board.busy(), 2, "it runs again");
    board.enter_idle();
    spins.give_way(100);
    assert_eq!(other.now(), VirtualTime(30 * MS));
    assert_eq!(board.busy(), 1);
    board.leave_idle();
    // From there it is counted on.
    leap(&real, 30 * MS);
    assert_eq!(spins.tsc(105), 30 * MS + 1_500 + 5 * 32);
    assert_eq!(other.tsc(0), 30 * MS + 1_500 + 5 * 32);
}

/// As Linux's `timer_irq_works` does: PAUSE and RDTSC in turn, for ticks to come.
#[test]
fn a_vcpu_that_waits_for_a_time_does_not_make_it_leap() {
    let (mut platforms, real) = platforms_of_given_time(2);
    let spins = &mut platforms[0];
    spins.board.enter_idle();
    leap(&real, 30 * MS);
    let mut last = spins.tsc(0);
    for retired in (5..500).step_by(5) {
        spins.give_way(retired);
        let now = spins.tsc(retired);
        assert_eq!(now - last, 1_500 + 5 * 32);
        last = now;
    }
    // Devices tell the time too.
    timer_count(spins, 500);
    let before = spins.now();
    spins.give_way(500);
    assert_eq!(spins.now(), before);
    // Once it reads no clock any more it waits for others.
    spins.give_way(600);
    assert_eq!(spins.now(), VirtualTime(30 * MS));
}

/// Virtual time is not real time's to move.
#[test]
fn in_virtual_mode_giving_way_takes_no_time() {
    let mut platforms = platforms(ClockMode::Virtual, 2);
    platforms[1].board.enter_idle();
    let spins = &mut platforms[0];
    // The jump to it would be for those who are all idle.
    start_timer(spins, 1_000);
    spins.tsc(700);
    spins.give_way(800);
    assert_eq!(spins.now(), VirtualTime(700));
    assert_eq!(spins.board.busy(), 1);
    assert!(!spins.interrupt_pending());
}

/// What is due for an idle vCPU does not wait for the end of another one's slice.
#[test]
fn an_idle_vcpu_has_those_that_run_look() {
    const LOOK: u32 = Attention::LOOK;
    let (mut platforms, real) = platforms_of_given_time(2);
    let mut idle = platforms.pop().expect("two");
    let mut runs = platforms.pop().expect("two");
    runs.poll(0);
    // 5 ms.
    start_timer(&mut idle, 125_000);
    let sleeper = thread::spawn(move || {
        assert_eq!(idle.idle(1, None), Wake::Event);
        idle.acknowledge_interrupt()
    });
    while runs.board.busy() != 1 {
        thread::yield_now();
    }
    assert_eq!(runs.line.attention().get(), 0, "nothing is due");
    leap(&real, 5 * MS);
    // It sleeps for real, whatever the test's clock is.
    while runs.line.attention().get() & LOOK == 0 {
        thread::yield_now();
    }
    // So many instructions could have taken that long.
    runs.poll(100_000);
    assert_eq!(runs.now(), VirtualTime(5 * MS));
    assert_eq!(sleeper.join().expect("no panic"), Some(0x40));
}
