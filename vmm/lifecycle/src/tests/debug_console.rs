//! The debug console's way to the outside.

use super::*;

const PORT: u16 = 0x402;

/// A pipe nobody reads before the channel says so, once for each write.
struct Stuck {
    to: Screen,
    read: Receiver<()>,
}

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let _ = self.read.recv();
        // A slow one even then.
        thread::sleep(Duration::from_millis(50));
        self.to.write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn wait_for(screen: &Screen, text: &str) {
    let until = Instant::now() + Duration::from_secs(20);
    while screen.text() != text {
        assert!(Instant::now() < until, "{:?}", screen.text());
        thread::sleep(Duration::from_millis(1));
    }
}

/// A VM whose debug console is stuck; the serial port, the debug console, and what makes it go on.
fn stuck(program: Program) -> (VmHandle, Screen, Screen, Sender<()>) {
    let (serial, debug) = (Screen::default(), Screen::default());
    let (release, read) = channel();
    let to = debug.clone();
    let console = Console {
        debug: Some(Box::new(Stuck { to, read })),
        ..serial.console()
    };
    let vm = start_with(&config(), console, program);
    (vm, serial, debug, release)
}

#[test]
fn a_stuck_pipe_does_not_hold_the_vcpu_and_nothing_is_lost() {
    let (vm, serial, debug, release) = stuck(|g| {
        for n in 0..3000 {
            g.out(PORT, b'a' + (n % 26) as u8);
        }
        g.print("beyond");
        g.out(0xf4, 3);
        g.spin()
    });
    // The guest goes on while nothing was written yet.
    wait_for(&serial, "beyond");
    assert_eq!(debug.text(), "");
    drop(release);
    assert_eq!(outcome(&vm), RunOutcome::DebugExit(3));
    let expected: String = (0..3000u32)
        .map(|n| char::from(b'a' + (n % 26) as u8))
        .collect();
    assert_eq!(debug.text(), expected, "all is there once the run is over");
}

#[test]
fn a_stuck_pipe_does_not_hold_up_a_stop() {
    let (vm, _, _, release) = stuck(|g| {
        while !g.stopping() {
            g.out(PORT, b'x');
        }
        Ok(RunExit::Stopped)
    });
    thread::sleep(Duration::from_millis(50));
    vm.stop();
    assert_eq!(outcome(&vm), RunOutcome::Stopped);
    drop(release);
}

/// The guest is over: nobody has to wait for a reader that never comes.
#[test]
fn a_stuck_pipe_does_not_hold_up_the_end_and_what_is_lost_is_told() {
    let begin = Instant::now();
    let (vm, serial, debug, release) = stuck(|g| {
        (0..3000).for_each(|_| g.out(PORT, b'x'));
        g.print("end");
        g.out(0xf4, 3);
        g.spin()
    });
    let report = vm.wait().expect("no failure of the host's");
    assert_eq!(report.outcome, RunOutcome::DebugExit(3));
    let lost = |console, debug| Lost { console, debug };
    assert_eq!(report.lost, lost(0, 3000));
    assert!(begin.elapsed() < Duration::from_secs(25));
    assert_eq!((serial.text().as_str(), debug.text().as_str()), ("end", ""));
    drop(release);
}

/// Takes a little at a time, each after so long.
struct Slow {
    to: Screen,
    pause: Duration,
}

impl Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        thread::sleep(self.pause);
        self.to.write(&bytes[..bytes.len().min(4096)])
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A guest that sends so many times 4096 bytes and ends, on a serial port whose reader takes these one by one; the end,
/// and how much arrived.
fn slowly(program: Program, pause: Duration) -> (Lost, usize) {
    let screen = Screen::default();
    let console = Console {
        output: Box::new(Slow {
            to: screen.clone(),
            pause,
        }),
        ..screen.console()
    };
    let vm = start_with(&config(), console, program);
    let report = vm.wait().expect("no failure of the host's");
    assert_eq!(report.outcome, RunOutcome::DebugExit(4));
    let arrived = screen.text().len();
    (report.lost, arrived)
}

/// A slow reader is waited for as long as it goes on, but not for ever. (Tests wait for 2 s and 4 s.)
#[test]
fn a_slow_reader_is_waited_for_but_not_for_ever() {
    let program: Program = |g| {
        (0..8).for_each(|_| g.print(&"x".repeat(4096)));
        g.out(0xf4, 4);
        g.spin()
    };
    let (lost, arrived) = slowly(program, Duration::from_millis(300));
    assert_eq!((lost, arrived), (Lost::default(), 8 * 4096), "2.4 s in all");
    let (lost, arrived) = slowly(program, Duration::from_millis(900));
    assert!(lost.console > 0, "7.2 s in all");
    // One more piece may be on its way.
    assert!(8 * 4096 - lost.console as usize <= arrived);
    assert!(arrived < 8 * 4096);
}

#[test]
fn what_cannot_be_written_is_dropped_and_does_not_end_the_run() {
    let screen = Screen::default();
    let console = Console {
        debug: Some(Box::new(Broken)),
        ..screen.console()
    };
    let vm = start_with(&config(), console, |g| {
        (0..3 << 20).for_each(|_| g.out(PORT, b'x'));
        g.print("end");
        g.out(0xf4, 1);
        g.spin()
    });
    let report = vm.wait().expect("no failure of the host's");
    assert_eq!(report.outcome, RunOutcome::DebugExit(1));
    assert_eq!(report.console_error, None);
    assert_eq!(screen.text(), "end");
}

/// Software looks for the port by what it reads as.
#[test]
fn without_a_way_out_there_is_no_port() {
    let screen = Screen::default();
    let vm = start_with(&config(), screen.console(), |g| {
        let found = g.input(PORT);
        g.out(0xf4, found);
        g.spin()
    });
    assert_eq!(outcome(&vm), RunOutcome::DebugExit(0xff));
}
