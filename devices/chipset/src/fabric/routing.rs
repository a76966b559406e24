//! Which local APICs a message reaches (SDM Vol 3 12.6.2 and 12.12.10).

use std::sync::atomic::Ordering;

use super::{HINT_PENDING, InterruptFabric};
use crate::lapic::{Acceptance, Lapic};
use crate::message::{DeliveryMode, Destination, InterruptMessage, LapicBus};

/// A set of vCPU numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct VcpuSet([u64; 4]);

impl VcpuSet {
    fn insert(&mut self, vcpu: usize) {
        self.0[vcpu >> 6 & 3] |= 1 << (vcpu & 63);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(i, &word)| {
            let mut left = word;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros() as usize;
                (left != 0).then(|| {
                    left &= left - 1;
                    i * 64 + bit
                })
            })
        })
    }
}

/// What matching a logical destination and choosing by priority needs, kept outside the local APIC's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LogicalId {
    ldr: u32,
    x2apic: bool,
    enabled: bool,
    software_enabled: bool,
    flat: bool,
    ppr: u8,
}

impl LogicalId {
    pub(super) fn of(lapic: &Lapic) -> Self {
        Self {
            ldr: lapic.logical_id(),
            x2apic: lapic.x2apic_mode(),
            enabled: lapic.enabled(),
            software_enabled: lapic.software_enabled(),
            flat: lapic.flat_model(),
            ppr: lapic.ppr(),
        }
    }

    pub(super) fn pack(self) -> u64 {
        u64::from(self.ldr)
            | u64::from(self.x2apic) << 32
            | u64::from(self.enabled) << 33
            | u64::from(self.software_enabled) << 34
            | u64::from(self.flat) << 35
            | u64::from(self.ppr) << 40
    }

    /// Whether messages may reach the local APIC now that did not when it was `before`.
    pub(super) fn reaches_more_than(self, before: Self) -> bool {
        self.software_enabled
            && Self {
                ppr: before.ppr,
                ..self
            } != before
    }

    pub(super) fn unpack(word: u64) -> Self {
        Self {
            ldr: word as u32,
            x2apic: word & 1 << 32 != 0,
            enabled: word & 1 << 33 != 0,
            software_enabled: word & 1 << 34 != 0,
            flat: word & 1 << 35 != 0,
            ppr: (word >> 40) as u8,
        }
    }

    /// Whether the message destination address `mda` names this local APIC.
    pub(super) fn matches(self, mda: u32) -> bool {
        if self.x2apic {
            // Cluster in the high half, one bit for each member in the low half.
            return self.ldr >> 16 == mda >> 16 && self.ldr & mda & 0xffff != 0;
        }
        let Ok(mda) = u8::try_from(mda) else {
            return false;
        };
        let ldr = (self.ldr >> 24) as u8;
        if self.flat {
            return ldr & mda != 0;
        }
        // Cluster model: Fh is all clusters.
        let cluster = mda >> 4 == 0xf || mda >> 4 == ldr >> 4;
        cluster && ldr & mda & 0xf != 0
    }
}

/// A delivery in progress: gathers whom to signal once no lock is held.
pub(super) struct Delivery<'a> {
    fabric: &'a InterruptFabric,
    sender: Option<usize>,
    wake: VcpuSet,
}

impl<'a> Delivery<'a> {
    pub(super) fn new(fabric: &'a InterruptFabric, sender: Option<usize>) -> Self {
        Self {
            fabric,
            sender,
            wake: VcpuSet::default(),
        }
    }

    /// Signals those who got something. The caller has let go of every lock.
    pub(super) fn finish(self) {
        self.fabric.wake_all(&self.wake);
    }

    /// Delivers to every target, or to one for lowest priority; true when one accepted.
    pub(super) fn route(&mut self, message: InterruptMessage) -> bool {
        let fabric = self.fabric;
        if message.mode == DeliveryMode::LowestPriority {
            return self.route_to_one(message);
        }
        match message.destination {
            Destination::Physical(id) => {
                let target = fabric.slots.iter().position(|s| s.apic_id == id);
                target.is_some_and(|vcpu| self.give(vcpu, message))
            }
            Destination::Logical(_) | Destination::All | Destination::AllButSender => {
                let mut accepted = false;
                for vcpu in 0..fabric.slots.len() {
                    if self.targets(vcpu, message.destination) {
                        accepted |= self.give(vcpu, message);
                    }
                }
                accepted
            }
        }
    }

    /// Delivers to the target of lowest priority. One that has been switched off since it was looked at is passed over.
    fn route_to_one(&mut self, message: InterruptMessage) -> bool {
        for _ in 0..self.fabric.slots.len() {
            let Some(vcpu) = self.lowest_priority(message) else {
                return false;
            };
            if self.give(vcpu, message) {
                return true;
            }
            // Asking it has refreshed what is known of it. One that is on has refused the message itself.
            if self.fabric.identity(vcpu).software_enabled {
                return false;
            }
        }
        false
    }

    fn targets(&self, vcpu: usize, destination: Destination) -> bool {
        match destination {
            Destination::Physical(id) => self.fabric.slots[vcpu].apic_id == id,
            Destination::Logical(mda) => {
                let identity = self.fabric.identity(vcpu);
                identity.enabled && identity.matches(mda)
            }
            Destination::All => true,
            Destination::AllButSender => self.sender != Some(vcpu),
        }
    }

    /// The target of lowest processor priority; equals take turns.
    fn lowest_priority(&self, message: InterruptMessage) -> Option<usize> {
        let count = self.fabric.slots.len();
        let start = self.fabric.turn.fetch_add(1, Ordering::Relaxed) % count;
        (0..count)
            .map(|i| (start + i) % count)
            .filter(|&vcpu| self.targets(vcpu, message.destination))
            .map(|vcpu| (vcpu, self.fabric.identity(vcpu)))
            .filter(|(_, identity)| identity.software_enabled)
            .min_by_key(|(_, identity)| identity.ppr >> 4)
            .map(|(vcpu, _)| vcpu)
    }

    fn give(&mut self, vcpu: usize, message: InterruptMessage) -> bool {
        let InterruptMessage {
            mode,
            vector,
            trigger,
            ..
        } = message;
        let (acceptance, new) = self
            .fabric
            .on_lapic(vcpu, |lapic| lapic.accept(mode, vector, trigger));
        let pending = self.fabric.slots[vcpu].hint.load(Ordering::SeqCst) & HINT_PENDING != 0;
        if new || (acceptance == Acceptance::New && pending) {
            self.wake.insert(vcpu);
        }
        acceptance != Acceptance::Refused
    }
}

impl LapicBus for Delivery<'_> {
    fn deliver(&mut self, message: InterruptMessage) -> bool {
        self.route(message)
    }
}
