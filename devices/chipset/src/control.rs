//! What the board's devices can ask of whoever runs the VM.

/// Requests of the guest to the machine around it. Called with the device's lock held: an implementation notes
/// the request and returns; it must not access the bus.
pub trait SystemControl: Send + Sync {
    /// The guest switches the machine off (ACPI S5).
    fn power_off(&self);

    /// The guest resets the machine.
    fn reset(&self);

    /// The guest wrote `code` to the debug-exit port.
    fn debug_exit(&self, code: u8);
}
