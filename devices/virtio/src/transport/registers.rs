//! The common configuration structure (4.1.4.3): selectors, features, status, and what the driver says of each queue.

use crate::queue::Queue;

/// Device status bits (2.1).
pub(super) mod status {
    pub const ACKNOWLEDGE: u8 = 1;
    pub const DRIVER: u8 = 2;
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
    pub const NEEDS_RESET: u8 = 64;
    pub const FAILED: u8 = 128;
    /// What the driver may set.
    pub const WRITABLE: u8 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;
}

/// Reserved feature bits (6).
pub(super) const INDIRECT_DESC: u64 = 1 << 28;
pub(super) const EVENT_IDX: u64 = 1 << 29;
pub(super) const VERSION_1: u64 = 1 << 32;

/// No MSI-X vector (4.1.5.1.2).
pub(super) const NO_VECTOR: u16 = 0xffff;

/// Offsets.
mod at {
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub const DEVICE_FEATURE: u64 = 0x04;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const CONFIG_VECTOR: u64 = 0x10;
    pub const NUM_QUEUES: u64 = 0x12;
    pub const STATUS: u64 = 0x14;
    pub const GENERATION: u64 = 0x15;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub const QUEUE_DESC: u64 = 0x20;
    pub const QUEUE_DRIVER: u64 = 0x28;
    pub const QUEUE_DEVICE: u64 = 0x30;
    pub const END: usize = 0x38;
}

/// What a write asks of the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Nothing,
    /// The driver wrote zero to the status.
    Reset,
    /// The driver agreed to features.
    Negotiated(u64),
    /// The driver is ready.
    Started,
}

/// A queue with its interrupt vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct QueueSlot {
    pub queue: Queue,
    pub vector: u16,
}

/// The registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Common {
    // Configuration.
    offered: u64,
    vectors: u16,
    // Volatile.
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    pub status: u8,
    pub config_vector: u16,
    queue_select: u16,
    pub queues: Vec<QueueSlot>,
}

impl Common {
    /// Registers of a device that offers `device_features` and has `vectors` MSI-X vectors.
    pub fn new(device_features: u64, queue_sizes: &[u16], vectors: u16) -> Self {
        Self {
            offered: device_features | VERSION_1 | INDIRECT_DESC | EVENT_IDX,
            vectors,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            status: 0,
            config_vector: NO_VECTOR,
            queue_select: 0,
            queues: queue_sizes
                .iter()
                .map(|&most| QueueSlot {
                    queue: Queue::new(most),
                    vector: NO_VECTOR,
                })
                .collect(),
        }
    }

    pub fn reset(&mut self) {
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.driver_features = 0;
        self.status = 0;
        self.config_vector = NO_VECTOR;
        self.queue_select = 0;
        for slot in &mut self.queues {
            slot.queue.reset();
            slot.vector = NO_VECTOR;
        }
    }

    /// Whether queues are worked on.
    pub fn is_live(&self) -> bool {
        self.status & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK
    }

    fn selected(&self) -> Option<&QueueSlot> {
        self.queues.get(usize::from(self.queue_select))
    }

    /// The whole structure as the driver reads it. A queue that does not exist has size zero (4.1.4.3).
    fn image(&self) -> [u8; at::END] {
        let mut image = [0; at::END];
        let mut put = |at: u64, bytes: &[u8]| {
            let at = at as usize;
            image[at..at + bytes.len()].copy_from_slice(bytes);
        };
        let half = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        put(
            at::DEVICE_FEATURE_SELECT,
            &self.device_feature_select.to_le_bytes(),
        );
        let device = half(self.offered, self.device_feature_select);
        put(at::DEVICE_FEATURE, &device.to_le_bytes());
        put(
            at::DRIVER_FEATURE_SELECT,
            &self.driver_feature_select.to_le_bytes(),
        );
        let driver = half(self.driver_features, self.driver_feature_select);
        put(at::DRIVER_FEATURE, &driver.to_le_bytes());
        put(at::CONFIG_VECTOR, &self.config_vector.to_le_bytes());
        put(at::NUM_QUEUES, &(self.queues.len() as u16).to_le_bytes());
        // The device configuration never changes, so its generation stays zero.
        put(at::STATUS, &[self.status]);
        put(at::GENERATION, &[0]);
        put(at::QUEUE_SELECT, &self.queue_select.to_le_bytes());
        let Some(QueueSlot { queue, vector }) = self.selected() else {
            return image;
        };
        put(at::QUEUE_SIZE, &queue.size().to_le_bytes());
        put(at::QUEUE_VECTOR, &vector.to_le_bytes());
        put(at::QUEUE_ENABLE, &u16::from(queue.enabled).to_le_bytes());
        put(at::QUEUE_NOTIFY_OFF, &self.queue_select.to_le_bytes());
        put(at::QUEUE_DESC, &queue.descriptors.to_le_bytes());
        put(at::QUEUE_DRIVER, &queue.available.to_le_bytes());
        put(at::QUEUE_DEVICE, &queue.used.to_le_bytes());
        image
    }

    /// A read of any size; beyond the end reads as zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let image = self.image();
        for (at, byte) in (offset..).zip(data) {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            *byte = image.get(at).copied().unwrap_or(0);
        }
    }

    /// A write. A field is written whole, 64-bit fields by halves or whole (4.1.3.1); other writes have no effect.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Request {
        match *data {
            [a] => self.write8(offset, a),
            [a, b] => self.write16(offset, u16::from_le_bytes([a, b])),
            [a, b, c, d] => self.write32(offset, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] if offset >= at::QUEUE_DESC => {
                self.write32(offset, u32::from_le_bytes([a, b, c, d]));
                self.write32(offset + 4, u32::from_le_bytes([e, f, g, h]))
            }
            _ => Request::Nothing,
        }
    }

    fn write8(&mut self, offset: u64, value: u8) -> Request {
        if offset != at::STATUS {
            return Request::Nothing;
        }
        if value == 0 {
            return Request::Reset;
        }
        // Bits are only ever added by the driver (2.1.1); those that are set stay.
        let before = self.status;
        let mut added = value & status::WRITABLE & !before;
        if added & status::FEATURES_OK != 0 && !self.acceptable() {
            added &= !status::FEATURES_OK;
        }
        if (before | added) & status::FEATURES_OK == 0 {
            // A driver that did not get its features through must not go on (3.1.1).
            added &= !status::DRIVER_OK;
        }
        self.status |= added;
        if added & status::FEATURES_OK != 0 {
            for slot in &mut self.queues {
                slot.queue.event_idx = self.driver_features & EVENT_IDX != 0;
                slot.queue.indirect = self.driver_features & INDIRECT_DESC != 0;
            }
        }
        if added & status::DRIVER_OK != 0 {
            Request::Started
        } else if added & status::FEATURES_OK != 0 {
            Request::Negotiated(self.driver_features)
        } else {
            Request::Nothing
        }
    }

    fn acceptable(&self) -> bool {
        self.driver_features & !self.offered == 0 && self.driver_features & VERSION_1 != 0
    }

    /// A vector the device has; the driver sees by reading back that it got none (4.1.5.1.2.1).
    fn vector(&self, vector: u16) -> u16 {
        if vector < self.vectors {
            vector
        } else {
            NO_VECTOR
        }
    }

    fn write16(&mut self, offset: u64, value: u16) -> Request {
        let vector = self.vector(value);
        match offset {
            at::CONFIG_VECTOR => self.config_vector = vector,
            at::QUEUE_SELECT => self.queue_select = value,
            at::QUEUE_VECTOR => {
                if let Some(slot) = self.queues.get_mut(usize::from(self.queue_select)) {
                    slot.vector = vector;
                }
            }
            at::QUEUE_SIZE => self.on_idle_queue(|queue| queue.set_size(value)),
            // Zero is not to be written (4.1.4.3.2) and does nothing.
            at::QUEUE_ENABLE if value == 1 => self.on_idle_queue(|queue| queue.enabled = true),
            _ => {}
        }
        Request::Nothing
    }

    /// Changes the selected queue, unless it is enabled.
    fn on_idle_queue(&mut self, change: impl FnOnce(&mut Queue)) {
        if let Some(slot) = self.queues.get_mut(usize::from(self.queue_select))
            && !slot.queue.enabled
        {
            change(&mut slot.queue);
        }
    }

    fn write32(&mut self, offset: u64, value: u32) -> Request {
        let low = |all: &mut u64| *all = *all & !0xffff_ffff | u64::from(value);
        let high = |all: &mut u64| *all = *all & 0xffff_ffff | u64::from(value) << 32;
        match offset {
            at::DEVICE_FEATURE_SELECT => self.device_feature_select = value,
            at::DRIVER_FEATURE_SELECT => self.driver_feature_select = value,
            // Features are settled once they are agreed on (2.2.1).
            at::DRIVER_FEATURE if self.status & status::FEATURES_OK == 0 => {
                match self.driver_feature_select {
                    0 => low(&mut self.driver_features),
                    1 => high(&mut self.driver_features),
                    _ => {}
                }
            }
            at::QUEUE_DESC => self.on_idle_queue(|q| low(&mut q.descriptors)),
            0x24 => self.on_idle_queue(|q| high(&mut q.descriptors)),
            at::QUEUE_DRIVER => self.on_idle_queue(|q| low(&mut q.available)),
            0x2c => self.on_idle_queue(|q| high(&mut q.available)),
            at::QUEUE_DEVICE => self.on_idle_queue(|q| low(&mut q.used)),
            0x34 => self.on_idle_queue(|q| high(&mut q.used)),
            _ => {}
        }
        Request::Nothing
    }
}
