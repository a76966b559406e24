//! Facts from VIRTIO 1.2 2.7.

use super::*;
use crate::testing::*;

fn drain(chain: &Chain, driver: &Driver) -> Vec<u8> {
    let mut reader = chain.reader();
    let mut data = vec![0; reader.left() as usize];
    reader
        .read(chain, &driver.ram, &mut data)
        .expect("all of it");
    data
}

#[test]
fn chains_come_in_order_and_go_back_through_the_used_ring() {
    let mut driver = Driver::new(4);
    let mut queue = driver.queue();
    assert_eq!(queue.pop(&driver.ram), Ok(None));
    driver.write(0x8000, b"hello ");
    driver.write(0x9000, b"world");
    driver.chain(
        0,
        &[(0x8000, 6, false), (0x9000, 5, false), (0xa000, 8, true)],
    );
    driver.chain(3, &[(0xb000, 4, true)]);
    driver.offer(0);
    driver.offer(3);
    let first = queue.pop(&driver.ram).expect("good").expect("there");
    assert_eq!(
        (first.head(), drain(&first, &driver)),
        (0, b"hello world".to_vec())
    );
    assert_eq!(first.writer().left(), 8);
    let second = queue.pop(&driver.ram).expect("good").expect("there");
    assert_eq!(second.head(), 3);
    assert_eq!(queue.pop(&driver.ram), Ok(None));
    // Given back out of order.
    let mut writer = second.writer();
    writer.write(&second, &driver.ram, b"four").expect("room");
    queue.push(&driver.ram, 3, writer.written()).expect("RAM");
    assert_eq!(driver.used(0), (1, 3, 4));
    queue.push(&driver.ram, 0, 0).expect("RAM");
    assert_eq!(driver.used(1), (2, 0, 0));
    assert_eq!(driver.read(0xb000, 4), b"four");
}

#[test]
fn indices_wrap_at_sixteen_bits() {
    let mut driver = Driver::new(2);
    let mut queue = driver.queue();
    driver.chain(1, &[(0x8000, 1, true)]);
    for _ in 0..0x1_0003u32 {
        driver.offer(1);
        assert!(queue.pop(&driver.ram).expect("good").is_some());
        queue.push(&driver.ram, 1, 1).expect("RAM");
    }
    assert_eq!(driver.used(0).0, 3);
}

#[test]
fn writers_skip_and_stop_at_the_end() {
    let mut driver = Driver::new(4);
    driver.chain(
        0,
        &[(0x8000, 2, true), (0x9000, 0, true), (0xa000, 3, true)],
    );
    driver.offer(0);
    let chain = driver
        .queue()
        .pop(&driver.ram)
        .expect("good")
        .expect("there");
    let mut writer = chain.writer();
    writer.skip(&chain, 1);
    writer.write(&chain, &driver.ram, b"abc").expect("room");
    assert_eq!((writer.left(), writer.written()), (1, 3));
    assert!(writer.write(&chain, &driver.ram, b"de").is_err());
    assert_eq!(driver.read(0x8000, 2), b"\0a");
    assert_eq!(driver.read(0xa000, 2), b"bc");
    writer.skip(&chain, 100);
    assert_eq!(writer.left(), 0);
}

#[test]
fn indirect_tables_are_followed() {
    let mut driver = Driver::new(2);
    let mut queue = driver.queue();
    driver.descriptor(DESC, 1, (0x8000, 48, INDIRECT, 0));
    driver.descriptor(0x8000, 0, (0x9000, 1, NEXT, 2));
    driver.descriptor(0x8000, 2, (0xa000, 2, WRITE, 0));
    driver.offer(1);
    assert_eq!(
        queue.clone().pop(&driver.ram),
        Err(QueueError::Indirect(48)),
        "not agreed on"
    );
    queue.indirect = true;
    let chain = queue.pop(&driver.ram).expect("good").expect("there");
    assert_eq!(
        (chain.head(), chain.reader().left(), chain.writer().left()),
        (1, 1, 2)
    );
}

#[test]
fn what_breaks_the_rules_is_an_error() {
    let result = |d: &dyn Fn(&mut Driver)| {
        let mut driver = Driver::new(4);
        d(&mut driver);
        let mut queue = driver.queue();
        queue.indirect = true;
        queue.pop(&driver.ram).map(|chain| chain.map(|c| c.head()))
    };
    let offered = |d: &dyn Fn(&Driver)| {
        result(&|driver: &mut Driver| {
            d(driver);
            driver.offer(0);
        })
    };
    assert_eq!(result(&|d| d.offer(4)), Err(QueueError::Descriptor(4)));
    assert_eq!(
        result(&|d| d.write(AVAIL + 2, &5u16.to_le_bytes())),
        Err(QueueError::Index {
            index: 5,
            expected: 0
        })
    );
    // A circle, and one in an indirect table.
    assert_eq!(
        offered(&|d| d.descriptor(DESC, 0, (0, 1, NEXT, 0))),
        Err(QueueError::TooLong)
    );
    assert_eq!(
        offered(&|d| {
            d.descriptor(DESC, 0, (0x8000, 16, INDIRECT, 0));
            d.descriptor(0x8000, 0, (0, 1, NEXT, 0));
        }),
        Err(QueueError::TooLong)
    );
    assert_eq!(
        offered(&|d| d.descriptor(DESC, 0, (0, 1, NEXT, 9))),
        Err(QueueError::Descriptor(9))
    );
    assert_eq!(
        offered(&|d| {
            d.descriptor(DESC, 0, (0x8000, 16, INDIRECT, 0));
            d.descriptor(0x8000, 0, (0x9000, 16, INDIRECT, 0));
        }),
        Err(QueueError::Indirect(16))
    );
    for (len, flags) in [(0, INDIRECT), (17, INDIRECT), (16, INDIRECT | NEXT)] {
        assert_eq!(
            offered(&|d| d.descriptor(DESC, 0, (0x8000, len, flags, 1))),
            Err(QueueError::Indirect(len))
        );
    }
    assert_eq!(
        offered(&|d| d.chain(0, &[(0, 1, true), (0, 1, false)])),
        Err(QueueError::Order)
    );
    for (at, len) in [(RAM_BYTES - 1, 2), (u64::MAX, 1), (0, u32::MAX)] {
        assert_eq!(
            offered(&|d| d.chain(0, &[(at, len, true)])),
            Err(QueueError::NotRam {
                gpa: Gpa(at),
                len: len.into()
            })
        );
    }
}

#[test]
fn rings_outside_of_ram_are_errors() {
    let mut driver = Driver::new(4);
    driver.chain(0, &[(0x8000, 1, true)]);
    driver.offer(0);
    for at in [RAM_BYTES - 1, u64::MAX - 1, u64::MAX] {
        let mut queue = driver.queue();
        queue.available = at;
        assert!(queue.pop(&driver.ram).is_err());
        assert!(queue.has_work(&driver.ram).is_err());
        let mut queue = driver.queue();
        queue.descriptors = at;
        assert!(queue.pop(&driver.ram).is_err());
        let mut queue = driver.queue();
        queue.used = at;
        assert!(queue.push(&driver.ram, 0, 0).is_err());
    }
}

#[test]
fn interrupts_follow_the_flag() {
    let mut driver = Driver::new(4);
    let mut queue = driver.queue();
    driver.chain(0, &[(0x8000, 1, true)]);
    assert_eq!(
        queue.wants_interrupt(&driver.ram),
        Ok(false),
        "nothing given back"
    );
    driver.offer(0);
    queue.push(&driver.ram, 0, 1).expect("RAM");
    assert_eq!(queue.wants_interrupt(&driver.ram), Ok(true));
    assert_eq!(
        queue.wants_interrupt(&driver.ram),
        Ok(false),
        "told already"
    );
    driver.write(AVAIL, &1u16.to_le_bytes());
    queue.push(&driver.ram, 0, 1).expect("RAM");
    assert_eq!(queue.wants_interrupt(&driver.ram), Ok(false));
}

#[test]
fn interrupts_follow_the_event_index() {
    // 2.7.7.2: interrupt when the used index passes used_event, which lies behind the available ring.
    let driver = Driver::new(4);
    let mut queue = driver.queue();
    queue.event_idx = true;
    let event = |index: u16| driver.write(AVAIL + 4 + 8, &index.to_le_bytes());
    let mut told = |pushes: u16, index: u16| {
        event(index);
        for _ in 0..pushes {
            queue.push(&driver.ram, 0, 1).expect("RAM");
        }
        queue.wants_interrupt(&driver.ram).expect("RAM")
    };
    assert!(told(1, 0), "index 0 passed");
    assert!(!told(1, 5), "index 1 passed, 5 asked for");
    assert!(told(3, 3), "2, 3 and 4 passed");
    assert!(!told(2, 3), "5 and 6 passed");
    assert!(told(1, 7), "7 passed");
}

#[test]
fn an_empty_queue_asks_for_the_next_chain_by_event_index() {
    // 2.7.10: avail_event lies behind the used ring.
    let mut driver = Driver::new(4);
    let mut queue = driver.queue();
    queue.event_idx = true;
    driver.chain(0, &[(0x8000, 1, true)]);
    for n in 1..=3 {
        driver.offer(0);
        assert!(queue.pop(&driver.ram).expect("good").is_some());
        assert_eq!(queue.pop(&driver.ram), Ok(None));
        assert_eq!(driver.word(USED + 4 + 8 * 4), n);
    }
}
