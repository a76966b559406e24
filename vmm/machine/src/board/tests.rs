use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use bus::{BusBuilder, Device, Region};

use super::*;

/// A device that is due so many milliseconds after it was written to.
struct Alarm {
    due: Option<VirtualTime>,
    fired: Sender<VirtualTime>,
}

impl Device for Alarm {
    fn name(&self) -> &'static str {
        "alarm"
    }
    fn reset(&mut self) {}
    fn read(&mut self, _: Region, _: u64, _: &mut [u8], _: VirtualTime) {}
    fn write(&mut self, _: Region, _: u64, data: &[u8], now: VirtualTime) {
        self.due = Some(now + u64::from(data[0]) * 1_000_000);
    }
    fn advance(&mut self, now: VirtualTime) {
        if self.due.is_some_and(|due| due <= now) {
            self.due = None;
            self.fired.send(now).expect("the test listens");
        }
    }
    fn deadline(&self) -> Option<VirtualTime> {
        self.due
    }
}

#[test]
fn the_timekeeper_serves_deadlines_set_while_it_sleeps() {
    let (fired, listen) = channel();
    let alarm = Alarm { due: None, fired };
    let mut bus = BusBuilder::new();
    bus.add(Arc::new(Mutex::new(alarm)), &[(0x10, 1, Region(0))], &[])
        .expect("an empty bus");
    let board = Arc::new(Board::new(
        bus.build(),
        Clock::real_time(),
        None,
        vec![Arc::default()],
    ));
    assert!(board.needs_timekeeper());
    let keeper = {
        let board = Arc::clone(&board);
        thread::spawn(move || board.keep_time())
    };
    let write = |ms: u8| {
        let now = board.now();
        board.bus.pio_write(0x10, &[ms], now);
        board.deadlines_changed();
        now
    };
    // It sleeps for ever, or until a later deadline; a nearer one must be seen each time.
    for round in 0..500u64 {
        if round % 3 == 0 {
            write(200);
        }
        let set = write((round % 2) as u8);
        let at = listen
            .recv_timeout(Duration::from_secs(30))
            .expect("the deadline is served");
        assert!(at >= set);
    }
    board.stop_timekeeper();
    keeper.join().expect("no panic");
}

#[test]
fn a_stop_before_the_timekeeper_sleeps_counts() {
    let board = Board::new(
        BusBuilder::new().build(),
        Clock::real_time(),
        None,
        Vec::new(),
    );
    board.stop_timekeeper();
    board.keep_time();
}

#[test]
fn the_earlier_deadline_is_taken() {
    let (a, b) = (Some(VirtualTime(1)), Some(VirtualTime(2)));
    assert_eq!(earlier(a, b), a);
    assert_eq!(earlier(b, a), a);
    assert_eq!(earlier(None, b), b);
    assert_eq!(earlier(a, None), a);
    assert_eq!(earlier(None, None), None);
}
