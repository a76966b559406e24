//! Facts from ACS-3, SPC-3 and MMC-6.

use super::*;
use crate::testing::{Disc, next};

/// A host with so much room.
struct Host {
    room: usize,
    got: Vec<u8>,
}

impl Data for Host {
    fn send(&mut self, data: &[u8]) -> Result<(), BusFault> {
        let len = data.len().min(self.room - self.got.len());
        self.got.extend(&data[..len]);
        Ok(())
    }
    fn overflow(&mut self) {}
    fn left_of_turn(&self) -> u64 {
        u64::MAX
    }
    fn is_full(&self) -> bool {
        self.got.len() == self.room
    }
}

fn drive() -> CdRom {
    let mut drive = CdRom::new(Box::new(Disc {
        sectors: 5000,
        fails: false,
    }));
    drive.attention = false;
    drive
}

/// The end of a command that takes one turn.
fn done(progress: Result<Progress, BusFault>) -> Completion {
    match progress {
        Ok(Progress::Done(end)) => end,
        other => panic!("{other:?}"),
    }
}

fn execute(drive: &mut CdRom, command: &Command) -> (Completion, Vec<u8>) {
    let mut host = Host {
        room: 1 << 20,
        got: Vec::new(),
    };
    let end = done(drive.execute(command, &mut host));
    (end, host.got)
}

fn run(drive: &mut CdRom, packet: &[u8]) -> Result<Vec<u8>, (u8, u8, u8)> {
    let mut all = [0; 16];
    all[..packet.len()].copy_from_slice(packet);
    let command = Command {
        command: 0xa0,
        packet: all,
        ..Command::default()
    };
    let (end, got) = execute(drive, &command);
    assert_eq!(end.count, 3, "interrupt reason: status to the host");
    if end.status & 1 == 0 {
        return Ok(got);
    }
    let sense = drive.sense.key;
    assert_eq!(end.error, sense << 4 | 4);
    let mut request = [0; 16];
    request[..5].copy_from_slice(&[3, 0, 0, 0, 18]);
    let command = Command {
        packet: request,
        ..command
    };
    let (_, bytes) = execute(drive, &command);
    assert_eq!((bytes[0], bytes[7]), (0x70, 10), "SPC-3 4.5.3");
    Err((bytes[2], bytes[12], bytes[13]))
}

const BAD_FIELD: Result<Vec<u8>, (u8, u8, u8)> = Err((5, 0x24, 0));

#[test]
fn it_identifies_as_a_packet_device() {
    let identify = |command| {
        let command = Command {
            command,
            ..Command::default()
        };
        execute(&mut drive(), &command)
    };
    let (end, data) = identify(0xa1);
    assert_eq!(
        (end.status & 1, end.protocol, data.len()),
        (0, Protocol::PioIn, 512)
    );
    let word = |n: usize| u16::from_le_bytes([data[2 * n], data[2 * n + 1]]);
    // ACS-3 7.13.7.2: ATAPI, command set 5, removable, 12-byte packets.
    assert_eq!(
        (
            word(0) >> 14,
            word(0) >> 8 & 0x1f,
            word(0) >> 7 & 1,
            word(0) & 3
        ),
        (2, 5, 1, 0)
    );
    assert_eq!(&data[54..62], b"ENTSILGN", "characters are swapped");
    // 7.12.1: for a packet device the command is aborted and the signature is in the registers.
    let (end, data) = identify(0xec);
    assert_eq!((end.status & 1, end.error, data.len()), (1, 4, 0));
    assert_eq!((end.count, end.lba), (1, 0xeb_1401));
    assert_eq!(identify(0x25).0.error, 4, "READ DMA EXT is for disks");
}

#[test]
fn power_on_and_reset_are_told_once() {
    let mut drive = CdRom::new(Box::new(Disc {
        sectors: 1,
        fails: false,
    }));
    assert!(
        run(&mut drive, &[0x12, 0, 0, 0, 36]).is_ok(),
        "INQUIRY does not tell"
    );
    assert_eq!(run(&mut drive, &[0]), Err((6, 0x29, 0)));
    assert_eq!(run(&mut drive, &[0]), Ok(vec![]));
    drive.reset();
    // REQUEST SENSE tells it itself.
    assert_eq!(run(&mut drive, &[3, 0, 0, 0, 18]).expect("good")[2], 6);
    assert_eq!(run(&mut drive, &[0]), Ok(vec![]));
}

#[test]
fn inquiry_data() {
    let data = run(&mut drive(), &[0x12, 0, 0, 0, 255]).expect("good");
    assert_eq!(data[..5], [5, 0x80, 5, 2, 31]);
    assert_eq!(&data[8..36], b"NESTLINGCD-ROM          1.0 ");
    assert_eq!(
        run(&mut drive(), &[0x12, 0, 0, 0, 5]).expect("good").len(),
        5
    );
    assert_eq!(run(&mut drive(), &[0x12, 1, 0x80, 0, 255]), BAD_FIELD);
}

#[test]
fn capacity_and_reads() {
    let mut d = drive();
    let capacity = run(&mut d, &[0x25]).expect("good");
    assert_eq!(
        capacity,
        [0, 0, 0x13, 0x87, 0, 0, 8, 0],
        "last sector, sector size"
    );
    let data = run(&mut d, &[0x28, 0, 0, 0, 1, 2, 0, 0, 2]).expect("good");
    assert_eq!(data.len(), 4096);
    assert_eq!(
        (data[0], data[2047], data[2048]),
        (2, 2, 3),
        "sectors 258 and 259"
    );
    let data = run(&mut d, &[0xa8, 0, 0, 0, 0, 7, 0, 0, 0, 70]).expect("good");
    assert_eq!((data.len(), data[0], data[69 * 2048]), (70 * 2048, 7, 76));
    assert_eq!(
        run(&mut d, &[0x28, 0, 0, 0, 0x13, 0x87, 0, 0, 1])
            .expect("good")
            .len(),
        2048
    );
    assert_eq!(
        run(&mut d, &[0x28, 0, 0, 0, 0x13, 0x88, 0, 0, 0]),
        Ok(vec![])
    );
    let outside = Err((5, 0x21, 0));
    assert_eq!(run(&mut d, &[0x28, 0, 0, 0, 0x13, 0x87, 0, 0, 2]), outside);
    assert_eq!(
        run(&mut d, &[0xa8, 0, 255, 255, 255, 255, 255, 255, 255, 255]),
        outside
    );
    assert_eq!(run(&mut d, &[0x2b, 0, 0, 0, 0x13, 0x87]), Ok(vec![]));
    assert_eq!(run(&mut d, &[0x2b, 0, 0, 0, 0x13, 0x88]), outside);
}

#[test]
fn a_read_stops_where_the_host_has_no_more_room() {
    let mut host = Host {
        room: 3000,
        got: Vec::new(),
    };
    let mut packet = [0; 16];
    packet[..10].copy_from_slice(&[0xa8, 0, 0, 0, 0, 0, 0, 0, 0x10, 0]);
    let command = Command {
        command: 0xa0,
        packet,
        ..Command::default()
    };
    let end = done(drive().execute(&command, &mut host));
    assert_eq!((end.status & 1, host.got.len()), (0, 3000));
}

#[test]
fn an_unreadable_disc_is_a_medium_error() {
    let mut drive = drive();
    drive.disc = Box::new(Disc {
        sectors: 10,
        fails: true,
    });
    assert_eq!(
        run(&mut drive, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1]),
        Err((3, 0x11, 0))
    );
}

#[test]
fn table_of_contents() {
    let mut d = drive();
    // MMC-6 6.25.2.2: length, first and last track; descriptors of track 1 and the lead-out.
    let toc = run(&mut d, &[0x43, 0, 0, 0, 0, 0, 0, 0, 255]).expect("good");
    assert_eq!(
        toc,
        [
            0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0, 0, 0x14, 0xaa, 0, 0, 0, 0x13, 0x88
        ]
    );
    // By time: sector 0 is 00:02:00; 5000 is 5150 frames, 1 minute, 8 seconds and 50.
    let toc = run(&mut d, &[0x43, 2, 0, 0, 0, 0, 0xaa, 0, 255]).expect("good");
    assert_eq!(toc, [0, 10, 1, 1, 0, 0x14, 0xaa, 0, 0, 1, 8, 50]);
    let sessions = run(&mut d, &[0x43, 0, 1, 0, 0, 0, 0, 0, 255]).expect("good");
    assert_eq!(sessions, [0, 10, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0]);
    assert_eq!(
        run(&mut d, &[0x43, 0, 2, 0, 0, 0, 0, 0, 255])
            .expect("good")
            .len(),
        4 + 4 * 11
    );
    assert_eq!(run(&mut d, &[0x43, 0, 0, 0, 0, 0, 2, 0, 255]), BAD_FIELD);
    assert_eq!(run(&mut d, &[0x43, 0, 5, 0, 0, 0, 0, 0, 255]), BAD_FIELD);
    assert_eq!(
        run(&mut d, &[0x43, 0, 0, 0, 0, 0, 0, 0, 4])
            .expect("good")
            .len(),
        4
    );
}

#[test]
fn features_profiles_and_events() {
    let mut d = drive();
    let all = run(&mut d, &[0x46, 0, 0, 0, 0, 0, 0, 1, 0]).expect("good");
    let length = u32::from_be_bytes(all[..4].try_into().expect("four"));
    assert_eq!(length as usize, all.len() - 4, "MMC-6 6.5.2.1");
    assert_eq!(all[6..8], [0, 8], "current profile: CD-ROM");
    let mut at = 8;
    let mut numbers = Vec::new();
    while at < all.len() {
        numbers.push(u16::from_be_bytes([all[at], all[at + 1]]));
        at += 4 + usize::from(all[at + 3]);
    }
    assert_eq!(
        (at, &numbers[..]),
        (all.len(), &[0, 1, 2, 3, 0x10, 0x1e][..])
    );
    let one = run(&mut d, &[0x46, 2, 0, 0x10, 0, 0, 0, 1, 0]).expect("good");
    assert_eq!(one.len(), 8 + 12);
    let event = run(&mut d, &[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8]).expect("good");
    assert_eq!(
        event,
        [0, 6, 4, 0x10, 0, 2, 0, 0],
        "medium present, no change"
    );
    assert_eq!(run(&mut d, &[0x4a, 0, 0, 0, 0x10, 0, 0, 0, 8]), BAD_FIELD);
    let event = run(&mut d, &[0x4a, 1, 0, 0, 2, 0, 0, 0, 8]).expect("good");
    assert_eq!(event, [0, 2, 0x80, 0x10], "no event available");
}

#[test]
fn mode_pages_and_disc_information() {
    let mut d = drive();
    let page = run(&mut d, &[0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 255]).expect("good");
    assert_eq!(usize::from(page[1]) + 2, page.len());
    assert_eq!((page[8], usize::from(page[9])), (0x2a, page.len() - 10));
    let all = run(&mut d, &[0x1a, 0, 0x3f, 0, 255]).expect("good");
    assert_eq!((usize::from(all[0]) + 1, all[4]), (all.len(), 1));
    assert_eq!(run(&mut d, &[0x5a, 0, 0x0e, 0, 0, 0, 0, 0, 255]), BAD_FIELD);
    assert_eq!(
        run(&mut d, &[0x5a, 0, 0xea, 0, 0, 0, 0, 0, 255]),
        BAD_FIELD,
        "saved pages"
    );
    let info = run(&mut d, &[0x51, 0, 0, 0, 0, 0, 0, 0, 255]).expect("good");
    assert_eq!((info[1], info[2] & 0xf), (32, 0xe));
}

#[test]
fn what_it_cannot_do_is_refused() {
    let mut d = drive();
    for operation in [0x2a, 0x04, 0xa1, 0xff, 0x45] {
        assert_eq!(
            run(&mut d, &[operation]),
            Err((5, 0x20, 0)),
            "{operation:#x}"
        );
    }
    assert_eq!(run(&mut d, &[0x1b, 0, 0, 0, 2]), BAD_FIELD, "eject");
    assert_eq!(run(&mut d, &[0x1b, 0, 0, 0, 3]), Ok(vec![]));
    assert_eq!(run(&mut d, &[0x1e, 0, 0, 0, 1]), Ok(vec![]));
}

#[test]
fn random_commands_never_panic() {
    let mut seed = 0x1234_5678_9abc_def1;
    let mut d = drive();
    for _ in 0..200_000 {
        let mut packet = [0; 16];
        packet[..8].copy_from_slice(&next(&mut seed).to_le_bytes());
        packet[8..].copy_from_slice(&next(&mut seed).to_le_bytes());
        let random = next(&mut seed);
        let command = Command {
            command: if random & 3 == 0 { random as u8 } else { 0xa0 },
            features: (random >> 8) as u16,
            lba: random >> 16,
            count: (random >> 24) as u16,
            device: (random >> 32) as u8,
            packet,
        };
        let mut host = Host {
            room: (random >> 40 & 0xfff) as usize,
            got: Vec::new(),
        };
        assert!(d.execute(&command, &mut host).is_ok());
    }
}
