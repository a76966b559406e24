//! What the vCPUs of a VM do together: let one of them be alone for a moment.
//!
//! A locked access inside one line of 64 bytes is a locked access of the host. Nothing on the host does one
//! across two lines, let alone two pages, as cheaply or at all; there the vCPU has all others stop between two
//! instructions, does its loads and stores, and lets them go on (SDM Vol 3 9.1.2: a bus lock).
//!
//! A vCPU is *inside* while it executes instructions: not while it sleeps, and not outside of its run. Who wants
//! to be alone closes the door and waits until nobody else is inside; who wants in waits until the door is open.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use vcpu::Attention;

#[derive(Debug, Default)]
struct Inside {
    /// vCPUs that execute instructions.
    count: u32,
    /// One of them is alone or waits to be.
    closed: bool,
    /// How to reach the vCPUs.
    attentions: Vec<Attention>,
}

/// Shared by the vCPUs of a VM.
#[derive(Debug, Default)]
pub struct World {
    inside: Mutex<Inside>,
    changed: Condvar,
}

/// The vCPU that has it is alone; dropping it lets the others in.
pub struct Alone {
    world: Arc<World>,
    /// The vCPU was inside.
    was_inside: u32,
}

impl World {
    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the door is open.
    fn open<'a>(&self, mut inside: MutexGuard<'a, Inside>) -> MutexGuard<'a, Inside> {
        while inside.closed {
            inside = self
                .changed
                .wait(inside)
                .unwrap_or_else(PoisonError::into_inner);
        }
        inside
    }

    /// Adds a vCPU, outside.
    pub fn join(&self, attention: Attention) {
        self.lock().attentions.push(attention);
    }

    /// A vCPU is about to execute instructions.
    pub fn enter(&self) {
        self.open(self.lock()).count += 1;
    }

    /// A vCPU stops executing instructions.
    pub fn leave(&self) {
        let mut inside = self.lock();
        inside.count -= 1;
        if inside.closed {
            self.changed.notify_all();
        }
    }

    /// A vCPU between two instructions lets another be alone, if one wants to.
    pub fn give_way(&self) {
        let mut inside = self.lock();
        if inside.closed {
            inside.count -= 1;
            self.changed.notify_all();
            self.open(inside).count += 1;
        }
    }

    /// Stops all other vCPUs. The caller is in the middle of an instruction and holds no lock.
    pub fn alone(self: &Arc<Self>) -> Alone {
        let mut inside = self.lock();
        // Whoever is alone now must not wait for us. (A vCPU that is stepped by a test is not inside.)
        let was_inside = inside.count.min(1);
        inside.count -= was_inside;
        if inside.closed {
            self.changed.notify_all();
        }
        let mut inside = self.open(inside);
        inside.closed = true;
        if inside.count > 0 {
            for attention in &inside.attentions {
                attention.raise(Attention::PAUSE);
            }
        }
        while inside.count > 0 {
            inside = self
                .changed
                .wait(inside)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Alone {
            world: Arc::clone(self),
            was_inside,
        }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let mut inside = self.world.lock();
        inside.closed = false;
        inside.count += self.was_inside;
        self.world.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Three vCPUs that are often alone and often give way, one that comes and goes: what is done alone is never
    /// interleaved, and nobody waits for ever.
    #[test]
    fn only_one_is_alone() {
        const ROUNDS: u32 = 3000;
        let world = Arc::new(World::default());
        let alone = AtomicU32::new(0);
        std::thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| {
                    let attention = Attention::new();
                    world.join(attention.clone());
                    world.enter();
                    for _ in 0..ROUNDS {
                        let guard = world.alone();
                        assert_eq!(alone.fetch_add(1, Ordering::SeqCst), 0);
                        std::hint::spin_loop();
                        assert_eq!(alone.fetch_sub(1, Ordering::SeqCst), 1);
                        drop(guard);
                        if attention.get() & Attention::PAUSE != 0 {
                            attention.clear(Attention::PAUSE);
                            world.give_way();
                        }
                    }
                    world.leave();
                });
            }
            s.spawn(|| {
                for _ in 0..ROUNDS {
                    world.enter();
                    assert_eq!(alone.load(Ordering::SeqCst), 0, "inside beside one alone");
                    world.leave();
                }
            });
        });
        assert_eq!(world.lock().count, 0);
    }
}
