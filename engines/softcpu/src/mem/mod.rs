//! Guest memory as instructions see it: segmentation, the software TLB, page walks, EPT.
//!
//! The hit path ([`Cpu::read_linear`](crate::cpu::Cpu), `write_linear`) is one compare of a tag into which the
//! page number, the permissions and the address space are folded, then a load or store by RAM offset.
//! Everything else (miss, page crossing, devices, pages with code) is the slow path in `access`.

mod access;
mod code_pages;
mod ept;
mod large;
mod locked;
mod sites;
mod tlb;
mod walk;

pub use access::NON_CANONICAL;
pub use code_pages::{CodePages, STALE_LIMIT};
pub use ept::EptCache;
pub use large::{Covered, LargePages};
pub use sites::{READ_SITES, SITES, Sites};
pub use tlb::{Jump, SLOTS, Space, Tlb, View};
pub use walk::{Access, Translation};
