//! Layout of the firmware configuration device (QEMU's docs/specs/fw_cfg).

/// First port: the selector, 16 bits, written.
pub const PORT: u16 = 0x510;
/// Ports the device takes.
pub const PORTS: u16 = 12;
/// Offset of the selector.
pub const SELECTOR: u64 = 0;
/// Offset of the data port, read byte by byte.
pub const DATA: u64 = 1;
/// Offset of the DMA address register: 64 bits, big-endian; its low half starts the operation.
pub const DMA_ADDRESS: u64 = 4;
/// What the DMA address register reads as: "QEMU CFG".
pub const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";
/// Selector bit of writes through the data port, which have no effect.
pub const WRITE_CHANNEL: u16 = 1 << 14;
/// Selector bit of items that only this architecture has.
pub const ARCHITECTURE: u16 = 1 << 15;

/// Item: "QEMU".
pub const SIGNATURE: u16 = 0x00;
/// Item: feature bits, a doubleword.
pub const ID: u16 = 0x01;
/// Item: the VM's UUID.
pub const UUID: u16 = 0x02;
/// Item: bytes of RAM, a quadword.
pub const RAM_SIZE: u16 = 0x03;
/// Item: no display is there, a word.
pub const NO_GRAPHIC: u16 = 0x04;
/// Item: vCPUs at start, a word.
pub const NB_CPUS: u16 = 0x05;
/// Item: address the kernel is to be loaded at, a doubleword.
pub const KERNEL_ADDRESS: u16 = 0x07;
/// Item: bytes of the kernel without its set-up part, a doubleword.
pub const KERNEL_SIZE: u16 = 0x08;
/// Item: address of the initial RAM disk, a doubleword.
pub const INITRD_ADDRESS: u16 = 0x0a;
/// Item: its bytes, a doubleword.
pub const INITRD_SIZE: u16 = 0x0b;
/// Item: whether a boot menu is asked for, a word.
pub const BOOT_MENU: u16 = 0x0e;
/// Item: highest APIC id there may be plus one, a word.
pub const MAX_CPUS: u16 = 0x0f;
/// Item: the kernel without its set-up part.
pub const KERNEL_DATA: u16 = 0x11;
/// Item: the initial RAM disk.
pub const INITRD_DATA: u16 = 0x12;
/// Item: address of the command line, a doubleword.
pub const CMDLINE_ADDRESS: u16 = 0x13;
/// Item: its bytes with the zero at the end, a doubleword.
pub const CMDLINE_SIZE: u16 = 0x14;
/// Item: the command line.
pub const CMDLINE_DATA: u16 = 0x15;
/// Item: address of the kernel's set-up part, a doubleword.
pub const SETUP_ADDRESS: u16 = 0x16;
/// Item: its bytes, a doubleword.
pub const SETUP_SIZE: u16 = 0x17;
/// Item: the kernel's set-up part.
pub const SETUP_DATA: u16 = 0x18;
/// Address, size and data of the kernel without its set-up part.
pub const KERNEL: [u16; 3] = [KERNEL_ADDRESS, KERNEL_SIZE, KERNEL_DATA];
/// Those of the initial RAM disk.
pub const INITRD: [u16; 3] = [INITRD_ADDRESS, INITRD_SIZE, INITRD_DATA];
/// Those of the command line.
pub const CMDLINE: [u16; 3] = [CMDLINE_ADDRESS, CMDLINE_SIZE, CMDLINE_DATA];
/// Those of the kernel's set-up part.
pub const SETUP: [u16; 3] = [SETUP_ADDRESS, SETUP_SIZE, SETUP_DATA];
/// Item: the directory of files.
pub const FILE_DIRECTORY: u16 = 0x19;
/// Item: the first file; the others follow.
pub const FILE_FIRST: u16 = 0x20;
/// Keys of files end before this.
pub const FILE_END: u16 = 0x4000;

/// Feature: selector and data port.
pub const FEATURE_PORTS: u32 = 1 << 0;
/// Feature: DMA.
pub const FEATURE_DMA: u32 = 1 << 1;

/// DMA control: an error happened.
pub const DMA_ERROR: u32 = 1 << 0;
/// DMA control: read into memory.
pub const DMA_READ: u32 = 1 << 1;
/// DMA control: move on without a transfer.
pub const DMA_SKIP: u32 = 1 << 2;
/// DMA control: first select the item of bits 31:16.
pub const DMA_SELECT: u32 = 1 << 3;
/// DMA control: write from memory.
pub const DMA_WRITE: u32 = 1 << 4;
/// Bytes of the structure that describes an operation.
pub const DMA_BYTES: usize = 16;

/// Bytes of a name in the directory, the zero at the end included.
pub const NAME_BYTES: usize = 56;
