//! VT-x from outside: instructions in memory, executed by the run loop.

mod events;
mod exits;
mod hostile;
mod instructions;
mod memory;
mod real_mode;
mod rig;
mod switch;
mod tasks;
