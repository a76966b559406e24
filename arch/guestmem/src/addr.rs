//! Address newtypes. Arithmetic on them wraps, as the processor's does.

use std::fmt;

/// log2 of the 4-KByte page.
pub const PAGE_SHIFT: u32 = 12;
/// The 4-KByte page, in bytes.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// The bits of an address inside its page.
pub const PAGE_MASK: u64 = PAGE_SIZE - 1;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The address of the page that holds this address.
            #[inline(always)]
            #[must_use]
            pub const fn page(self) -> Self {
                Self(self.0 & !PAGE_MASK)
            }

            /// Byte offset inside the page.
            #[inline(always)]
            #[must_use]
            pub const fn page_offset(self) -> u64 {
                self.0 & PAGE_MASK
            }

            /// The page number.
            #[inline(always)]
            #[must_use]
            pub const fn page_number(self) -> u64 {
                self.0 >> PAGE_SHIFT
            }

            /// This address plus `bytes`, wrapping.
            #[inline(always)]
            #[must_use]
            pub const fn offset(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address!(
    /// Guest-physical address as the VM's board sees it (L1-physical).
    Gpa
);
address!(
    /// Linear address in the guest that is running (SDM Vol 3 3.3.7).
    Gva
);
address!(
    /// Guest-physical address of a nested guest, before EPT or nested paging.
    L2Gpa
);
