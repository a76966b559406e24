//! Instruction conformance: the same instruction with the same inputs on the host's processor and on an
//! engine, compared.
//!
//! A [`Case`] is one encoded instruction with all its inputs. A [`Subject`] executes cases; the host's own
//! processor ([`host::Host`]) is the oracle, the software CPU is what is judged. [`forms`] lists the forms
//! that can be tested and says why the others cannot, [`generate`] makes cases of a form, [`undefined`]
//! knows which results the manuals leave open, and [`run`] puts it together.
//!
//! [`guest`] builds the bare-metal guests of `guests/` and runs them on a whole machine.
//!
//! Invariants: a case is a pure function of (seed, form, number); both subjects see identical linear
//! addresses; every access of a case stays inside its [`Layout`]'s slot or is non-canonical.

mod case;
pub mod compare;
pub mod engine;
pub mod fixtures;
pub mod forms;
pub mod generate;
pub mod guest;
pub mod host;
mod implemented;
mod random;
pub mod run;
pub mod segments;
pub mod undefined;

pub use case::{
    CODE_BYTES, Case, Exception, Extended, Layout, Outcome, Patch, READ_ONLY_OFFSET, Registers,
    Subject, WINDOW_BYTES,
};
pub use implemented::Implemented;
pub use random::Random;
