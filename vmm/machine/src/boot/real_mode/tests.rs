use std::sync::Arc;

use super::super::tests::kernel_bytes;
use super::*;
use crate::config::Module;

const MIB: u64 = 1 << 20;

fn image(bytes: Vec<u8>) -> Image {
    Image::Bytes(Arc::new(bytes))
}

/// What is read of a kernel with a changed header in 64 MByte.
fn read(
    change: impl FnOnce(&mut Vec<u8>, &mut MachineConfig),
) -> Result<Option<RealModeKernel>, BootError> {
    let mut bytes = kernel_bytes();
    let mut config = MachineConfig {
        memory_bytes: 64 * MIB,
        cmdline: "console=ttyS0".into(),
        ..MachineConfig::default()
    };
    change(&mut bytes, &mut config);
    config.kernel = Some(image(bytes));
    RealModeKernel::read(&config, &MemoryMap::new(config.memory_bytes))
}

fn refusal(change: impl FnOnce(&mut Vec<u8>, &mut MachineConfig)) -> String {
    read(change).expect_err("it is refused").to_string()
}

#[test]
fn the_file_is_split_behind_the_setup_sectors_and_not_changed() {
    let kernel = read(|_, config| config.initrd = Some(image(vec![7; 5000])));
    let kernel = kernel.expect("good").expect("a kernel");
    // Two sectors behind the boot sector.
    assert_eq!(kernel.setup.len(), 3 * 512);
    assert_eq!([kernel.setup, kernel.code].concat(), kernel_bytes());
    assert_eq!(kernel.cmdline, b"console=ttyS0\0");
    let (bytes, at) = kernel.initrd.expect("there is one");
    assert_eq!(bytes, [7; 5000]);
    assert_eq!(at, Gpa(64 * MIB - 8192));
    let config = MachineConfig::default();
    let map = MemoryMap::new(64 * MIB);
    assert_eq!(RealModeKernel::read(&config, &map).expect("good"), None);
}

#[test]
fn an_initrd_stays_where_the_kernel_reaches_it() {
    let reach = |bytes: &mut Vec<u8>, value: u32| {
        bytes[0x22c..0x230].copy_from_slice(&value.to_le_bytes());
    };
    let kernel = read(|bytes, config| {
        reach(bytes, 0x02ff_ffff);
        config.initrd = Some(image(vec![7; 4096]));
    });
    let (_, at) = kernel
        .expect("good")
        .expect("a kernel")
        .initrd
        .expect("one");
    assert_eq!(at, Gpa(0x02ff_f000));
    // The kernel takes 20 MByte from 16 MByte on.
    let text = refusal(|bytes, config| {
        reach(bytes, 0x023f_ffff + 4095);
        config.initrd = Some(image(vec![7; 4096]));
    });
    assert!(text.contains("larger than this kernel accepts"), "{text}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let text = refusal(|_, config| config.memory_bytes = 36 * MIB);
    assert!(text.contains("too little for the kernel"), "{text}");
    assert!(read(|_, config| config.memory_bytes = 37 * MIB).is_ok());
    // 28 MByte are left, of which the firmware keeps one.
    let initrd = |mib: u64| {
        move |_: &mut Vec<u8>, config: &mut MachineConfig| {
            config.initrd = Some(image(vec![0; (mib * MIB) as usize]));
        }
    };
    assert!(read(initrd(27)).is_ok());
    let text = refusal(initrd(28));
    assert!(text.contains("does not fit beside the kernel"), "{text}");
}

#[test]
fn a_command_line_ends_where_its_segment_does() {
    let limit = |bytes: &mut Vec<u8>, value: u32| {
        bytes[0x238..0x23c].copy_from_slice(&value.to_le_bytes());
    };
    let line = |kernel: u32, length: usize| {
        read(|bytes, config| {
            limit(bytes, kernel);
            config.cmdline = "x".repeat(length);
        })
    };
    assert!(line(2047, 2047).is_ok());
    assert!(matches!(
        line(2047, 2048),
        Err(BootError::CmdlineTooLong {
            length: 2048,
            limit: 2047
        })
    ));
    // From 1_E000 to 2_0000.
    let kernel = line(100_000, 8191).expect("good").expect("a kernel");
    assert_eq!(CMDLINE.0 + kernel.cmdline.len() as u64, 0x2_0000);
    assert!(line(100_000, 8192).is_err());
}

#[test]
fn what_no_firmware_starts_is_refused() {
    for (file, why) in [
        (b"\x7fELF\x02\x01\x01".to_vec(), "only a Linux bzImage"),
        (vec![0; 4096], "only a Linux bzImage"),
    ] {
        let text = check(&file).expect_err("refused").to_string();
        assert!(text.contains(why), "{text}");
        assert!(refusal(|bytes, _| *bytes = file).contains(why));
    }
    let old = refusal(|bytes, _| bytes[0x206..0x208].copy_from_slice(&[0x02, 0x02]));
    assert!(old.contains("boot protocol 2.02 is too old"), "{old}");
    let low = refusal(|bytes, _| bytes[0x211] = 0);
    assert!(low.contains("zImage"), "{low}");
    let large = refusal(|bytes, _| {
        bytes[0x1f1] = 64;
        bytes.resize(bytes.len() + 64 * 512, 0);
    });
    assert!(large.contains("setup_sects is more than 63"), "{large}");
    let modules = refusal(|_, config| {
        config.modules = vec![Module {
            image: image(Vec::new()),
            text: String::new(),
        }];
    });
    assert!(modules.contains("takes no modules"), "{modules}");
}
