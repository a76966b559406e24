use std::thread;

use super::*;

const MS: u64 = 1_000_000;

#[test]
fn ticks_round_down_and_back_up() {
    // The PIT's 1.193182 MHz: one tick is 838.09 ns.
    assert_eq!(VirtualTime(838).to_ticks(1_193_182), 0);
    assert_eq!(VirtualTime::from_ticks(1, 1_193_182), VirtualTime(839));
    assert_eq!(VirtualTime(839).to_ticks(1_193_182), 1);
}

#[test]
fn virtual_time_only_moves_forward() {
    let c = Clock::new(ClockMode::Virtual);
    c.advance_to(VirtualTime(5));
    c.advance_to(VirtualTime(3));
    assert_eq!(c.now(), VirtualTime(5));
}

/// A clock in host mode and its real time.
fn host() -> (Clock, Arc<AtomicU64>) {
    let real = Arc::new(AtomicU64::new(0));
    let source = RealTime::Given(Arc::clone(&real));
    (Clock::with_real_time(ClockMode::Host, source), real)
}

#[test]
fn in_virtual_mode_real_time_moves_nothing() {
    let real = Arc::new(AtomicU64::new(50 * MS));
    let clock = Clock::with_real_time(ClockMode::Virtual, RealTime::Given(real));
    clock.advance_to(VirtualTime(7));
    for time in [
        clock.now(),
        clock.look(VirtualTime(7), 1_000),
        clock.catch_up(),
        clock.watch(),
    ] {
        assert_eq!(time, VirtualTime(7));
    }
    assert_eq!(clock.lag(), 0);
}

#[test]
fn a_vcpu_that_runs_sees_real_time() {
    let (clock, real) = host();
    let mut last = VirtualTime(0);
    // From a look to the next: instructions, and what they took, at 10 ns each.
    for executed in [0, 1, 5, 32_768, 100, 2_000_000] {
        let now = real.fetch_add(10 * executed + 200, Ordering::Relaxed) + 10 * executed + 200;
        last = clock.look(last, executed);
        assert_eq!(last, VirtualTime(now));
        assert_eq!(clock.now(), last);
        assert_eq!(clock.lag(), 0);
    }
}

#[test]
fn a_leap_is_shown_in_steps_and_made_up() {
    let (clock, real) = host();
    real.store(30 * MS, Ordering::Relaxed);
    let mut last = VirtualTime(0);
    let mut looks = 0;
    while clock.lag() > 0 {
        real.fetch_add(300, Ordering::Relaxed);
        let now = clock.look(last, 5);
        assert!(now > last, "it goes on");
        assert!(now - last <= LOOK_NS + 5 * INSTRUCTION_NS);
        assert!(now <= clock.real(), "it is never ahead");
        last = now;
        looks += 1;
    }
    // What is made up in a look is 1,660 ns less the 300 ns that pass.
    assert_eq!(looks, (30 * MS).div_ceil(1_360));
}

#[test]
fn what_is_executed_without_a_look_makes_up_too() {
    let (clock, real) = host();
    real.store(MS, Ordering::Relaxed);
    // 1,000 instructions allow 32 us, and the look itself 1.5.
    let now = clock.look(VirtualTime(0), 1_000);
    assert_eq!(now, VirtualTime(33_500));
    assert_eq!(clock.look(now, 32_768), VirtualTime(MS));
    real.store(90 * MS, Ordering::Relaxed);
    let now = clock.look(VirtualTime(MS), 11_024);
    assert_eq!(now - VirtualTime(MS), 1_500 + 1_024 * 32 + 10_000 * 128);
    assert_eq!(clock.look(now, u64::MAX), VirtualTime(90 * MS));
}

#[test]
fn a_long_lag_is_shown_at_once() {
    let (clock, real) = host();
    real.store(MAX_LAG_NS, Ordering::Relaxed);
    assert_eq!(clock.look(VirtualTime(0), 0), VirtualTime(LOOK_NS));
    let stop = 5_000 * MS;
    real.store(stop, Ordering::Relaxed);
    assert_eq!(clock.look(VirtualTime(LOOK_NS), 0), VirtualTime(stop));
    real.fetch_add(MAX_LAG_NS + 1, Ordering::Relaxed);
    assert_eq!(clock.watch(), VirtualTime(stop + MAX_LAG_NS + 1));
}

#[test]
fn nobody_who_runs_no_lag() {
    let (clock, real) = host();
    real.store(20 * MS, Ordering::Relaxed);
    assert_eq!(clock.catch_up(), VirtualTime(20 * MS));
}

#[test]
fn a_vcpu_that_waits_moves_nothing() {
    let (clock, real) = host();
    clock.look(VirtualTime(0), 0);
    real.store(20 * MS, Ordering::Relaxed);
    let shown = clock.look(VirtualTime(0), 0);
    assert_eq!(clock.watch(), shown);
    assert_eq!(clock.lag(), 20 * MS - shown.0);
}

/// The steps of one do not add up with those of another: each counts from its own last look.
#[test]
fn two_vcpus_do_not_push_each_other() {
    let (clock, real) = host();
    real.store(20 * MS, Ordering::Relaxed);
    let mut last = [VirtualTime(0); 2];
    for round in 1..=1_000 {
        for own in &mut last {
            *own = clock.look(*own, 0);
        }
        assert!(last[1].0 <= (round + 1) * LOOK_NS, "{last:?} in {round}");
    }
    // One that slept long, or did not run, sees what the others have seen.
    let shown = clock.now();
    assert_eq!(clock.look(VirtualTime(0), 10), shown);
}

/// What one vCPU has seen, no other vCPU's later look falls behind, whatever real time does meanwhile.
#[test]
fn vcpus_on_threads_agree() {
    const LOOKS: u64 = 200_000;
    let (clock, real) = host();
    let seen = AtomicU64::new(0);
    thread::scope(|scope| {
        for vcpu in 0..3u64 {
            let (clock, real, seen) = (&clock, &real, &seen);
            scope.spawn(move || {
                let mut last = VirtualTime(0);
                for n in 0..LOOKS {
                    let by = if n % 5_000 == vcpu {
                        130 * MS
                    } else {
                        n % 3_000
                    };
                    real.fetch_add(by, Ordering::AcqRel);
                    let before = seen.load(Ordering::Acquire);
                    let now = match n % 1_000 {
                        0 => clock.catch_up(),
                        1..10 => clock.watch(),
                        _ => clock.look(last, n % 20),
                    };
                    assert!(now >= last && now.0 >= before);
                    assert!(now <= clock.real());
                    last = now;
                    seen.fetch_max(now.0, Ordering::AcqRel);
                }
            });
        }
    });
}

#[test]
fn the_hosts_clock_goes_on() {
    let clock = Clock::real_time();
    assert_eq!(clock.mode(), ClockMode::Host);
    assert_eq!(clock.lag(), 0);
    let before = clock.now();
    while clock.now() == before {}
    assert!(clock.now() > before);
}

/// A guest that reads clocks in a loop: each read takes some instructions, and now and then the host gives its
/// processor to others.
struct Measuring<'a> {
    clock: &'a Clock,
    real: &'a AtomicU64,
    last: VirtualTime,
    looks: u64,
    /// The processor is lost for so long after so many reads.
    away: Option<(u64, u64)>,
}

impl Measuring<'_> {
    fn read(&mut self) -> VirtualTime {
        // A read and the few instructions around it.
        self.real.fetch_add(350, Ordering::Relaxed);
        self.looks += 1;
        if let Some((every, ns)) = self.away
            && self.looks.is_multiple_of(every)
        {
            self.real.fetch_add(ns, Ordering::Relaxed);
        }
        self.last = self.clock.look(self.last, 5);
        self.last
    }

    /// The upper byte of the PIT's counter 2, which counted down from FFFFh since `start`: two reads of port 42h.
    fn pit(&mut self, start: VirtualTime) -> u8 {
        self.read();
        let ticks = VirtualTime(self.read() - start).to_ticks(1_193_182);
        (0xffff_u64.wrapping_sub(ticks) >> 8) as u8
    }

    /// Reads the TSC, of 1 GHz, as long as the PIT shows `msb`. Gives the TSC at the last time it did and how far
    /// that may be from the moment it changed; nothing where it did not show it often enough.
    fn edge(&mut self, start: VirtualTime, msb: u8) -> Option<(u64, u64)> {
        let (mut tsc, mut before) = (0, 0);
        let mut count = 0;
        while self.pit(start) == msb {
            before = tsc;
            tsc = self.read().0;
            count += 1;
        }
        let uncertain = self.read().0 - before;
        (count > 5).then_some((tsc, uncertain))
    }

    /// The TSC's frequency in Hz as Linux finds it (`quick_pit_calibrate`): from edges of the upper byte, 256 ticks
    /// apart, until the uncertainty is below 1/2048, for at most 50 ms.
    fn calibrate(&mut self) -> Option<u64> {
        let start = self.read();
        let most = 50 * 1_193_182 / 1_000 / 256;
        let (first, d1) = self.edge(start, 0xff)?;
        for i in 1..=most {
            let (tsc, d2) = self.edge(start, 0xff - i as u8)?;
            let delta = tsc - first;
            if i == 1 && d1 + d2 >= (delta * most) >> 11 {
                return None;
            }
            if d1 + d2 >= delta >> 11 {
                continue;
            }
            let stable = self.pit(start) == 0xfe - i as u8;
            return stable.then(|| delta * 1_193_182 / (256 * i));
        }
        None
    }
}

/// How often of a hundred times the measurement comes to 1 GHz within 500 ppm, and how often it fails.
fn calibrations(clock: &Clock, real: &AtomicU64, away: Option<(u64, u64)>) -> (u32, u32) {
    let mut guest = Measuring {
        clock,
        real,
        last: clock.now(),
        looks: 0,
        away,
    };
    let (mut right, mut failed) = (0, 0);
    for n in 0..100 {
        // They begin at all kinds of moments.
        for _ in 0..n * 37 {
            guest.read();
        }
        match guest.calibrate() {
            Some(hz) if hz.abs_diff(1_000_000_000) <= 500_000 => right += 1,
            Some(_) => {}
            None => failed += 1,
        }
    }
    (right, failed)
}

/// A third or a quarter of a processor, in turns of some milliseconds, as four busy processes leave it on two.
const BUSY_HOSTS: [Option<(u64, u64)>; 4] = [
    None,
    Some((10_000, 7 * MS)),
    Some((10_000, 10 * MS)),
    Some((30_000, 30 * MS)),
];

#[test]
fn a_busy_host_does_not_spoil_a_measurement() {
    for away in BUSY_HOSTS {
        let (clock, real) = host();
        assert_eq!(calibrations(&clock, &real, away), (100, 0), "{away:?}");
    }
}

/// The measurement begins just after the processor was lost, so that every read of it moves time as far as one may.
#[test]
fn lag_that_is_made_up_does_not_spoil_a_measurement() {
    let (clock, real) = host();
    for _ in 0..20 {
        clock.catch_up();
        real.fetch_add(MAX_LAG_NS - MS, Ordering::Relaxed);
        let mut guest = Measuring {
            clock: &clock,
            real: &real,
            last: clock.now(),
            looks: 0,
            away: None,
        };
        let hz = guest.calibrate().expect("it comes to an end");
        assert!(hz.abs_diff(1_000_000_000) <= 500_000, "{hz}");
        assert!(clock.lag() > 0, "all of it was");
    }
}

/// Real time as it is spoils them, so the guest above can tell.
#[test]
fn bare_real_time_spoils_measurements() {
    for away in BUSY_HOSTS {
        let real = Arc::new(AtomicU64::new(0));
        let clock = Clock {
            pace: Pace::Real,
            real: RealTime::Given(Arc::clone(&real)),
            shown_ns: AtomicU64::new(0),
        };
        let (right, _) = calibrations(&clock, &real, away);
        if away.is_none() {
            assert_eq!(right, 100, "an idle host");
        } else {
            assert!(right < 80, "{right} on {away:?}");
        }
    }
}
