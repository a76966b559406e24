use super::*;

fn file(bytes: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(bytes).expect("a size");
    file
}

#[test]
fn sectors_go_to_the_file_and_come_back() {
    let image = file(4096);
    let mut disk = RawFile::open(image.path(), Access::ReadWrite).expect("opens");
    assert_eq!((disk.size_bytes(), disk.is_read_only()), (4096, false));
    disk.write(1024, &[0xab; 512]).expect("written");
    disk.flush().expect("flushed");
    let bytes = std::fs::read(image.path()).expect("readable");
    assert_eq!(bytes[1023..1025], [0, 0xab]);
    assert_eq!(bytes[1535..1537], [0xab, 0]);
    let mut data = [0; 1024];
    disk.read(1024, &mut data).expect("read");
    assert_eq!((data[0], data[511], data[512]), (0xab, 0xab, 0));
    for unmap in [false, true] {
        disk.write(1024, &[0xab; 1024]).expect("written");
        disk.write_zeroes(1536, 512, unmap).expect("zeroed");
        disk.read(1024, &mut data).expect("read");
        assert_eq!((data[511], data[512], data[1023]), (0xab, 0, 0));
    }
    disk.discard(0, 4096).expect("discarded");
    disk.discard(0, 0).expect("nothing to do");
    disk.write_zeroes(4096, 0, false).expect("nothing to do");
    assert_eq!(image.as_file().metadata().expect("there").len(), 4096);
}

#[test]
fn what_is_outside_is_refused_and_changes_nothing() {
    let image = file(4096);
    let mut disk = RawFile::open(image.path(), Access::ReadWrite).expect("opens");
    let range = |result| matches!(result, Err(BlockError::Range { .. }));
    assert!(range(disk.write(4096, &[0; 512])));
    assert!(range(disk.write(3584, &[1; 1024])));
    assert!(range(disk.write(1, &[1; 512])));
    assert!(range(disk.read(4096, &mut [0; 512])));
    assert!(range(disk.read(0, &mut [0; 100])));
    assert!(range(disk.discard(u64::MAX - 511, 1024)));
    assert!(range(disk.write_zeroes(4096, 512, true)));
    assert!(std::fs::read(image.path()).expect("readable") == [0; 4096]);
}

#[test]
fn a_read_only_disk_is_not_written() {
    let image = file(1024);
    let mut disk = RawFile::open(image.path(), Access::ReadOnly).expect("opens");
    assert!(disk.is_read_only());
    assert!(matches!(
        disk.write(0, &[1; 512]),
        Err(BlockError::ReadOnly)
    ));
    assert!(matches!(disk.discard(0, 512), Err(BlockError::ReadOnly)));
    assert!(matches!(
        disk.write_zeroes(0, 512, false),
        Err(BlockError::ReadOnly)
    ));
    disk.flush().expect("nothing to do");
}

#[test]
fn a_cd_rom_is_filled_up_to_whole_sectors() {
    let image = file(0);
    std::fs::write(image.path(), [7; 2049]).expect("written");
    let mut disc = RawFile::open(image.path(), Access::CdRom).expect("opens");
    assert_eq!(disc.size_bytes(), 4096);
    let mut data = [1; 2048];
    disc.read(2048, &mut data).expect("read");
    assert_eq!((data[0], data[1], data[2047]), (7, 0, 0));
}

#[test]
fn one_writer_or_many_readers() {
    let image = file(512);
    let open = |access| RawFile::open(image.path(), access);
    let locked = |access| matches!(open(access), Err(RawFileError::Locked(_)));
    let writer = open(Access::ReadWrite).expect("the first");
    assert!(locked(Access::ReadWrite) && locked(Access::ReadOnly) && locked(Access::CdRom));
    drop(writer);
    let _readers = [open(Access::ReadOnly), open(Access::CdRom)].map(|r| r.expect("shared"));
    assert!(locked(Access::ReadWrite));
}

#[test]
fn what_is_no_image_is_refused_with_a_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = RawFile::open(&folder.path().join("none"), Access::ReadOnly);
    assert!(matches!(missing, Err(RawFileError::Open { .. })));
    let is_folder = RawFile::open(folder.path(), Access::ReadOnly);
    assert!(matches!(is_folder, Err(RawFileError::Kind(_))));
    let device = RawFile::open(Path::new("/dev/null"), Access::ReadOnly);
    assert!(matches!(device, Err(RawFileError::Kind(_))));
    let empty = RawFile::open(file(0).path(), Access::ReadWrite);
    assert!(matches!(empty, Err(RawFileError::Empty(_))));
    let odd = RawFile::open(file(513).path(), Access::ReadWrite).expect_err("odd");
    assert!(odd.to_string().contains("513 bytes"), "{odd}");
}
