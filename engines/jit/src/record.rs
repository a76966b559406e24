//! What a handler is called with: which operation of which block, by numbers.
//!
//! The operations themselves are where the interpreter has them, in its cache. They stay there as long as the
//! translation of their block may run.

/// What a handler is called with.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// Number of its block in the cache.
    pub block: u32,
    /// How often its handler was called.
    pub calls: u32,
    /// Its operation, by its place in the block.
    pub op: u16,
    /// For the profile: what it is, as a number of [`iced_x86::Mnemonic`].
    pub mnemonic: u16,
    /// What it is about.
    pub what: What,
}

/// What a record is about: a set of the constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct What(u8);

impl What {
    /// Nothing of the below.
    pub const NONE: Self = Self(0);
    /// The operation reads or writes arithmetic flags.
    pub const FLAGS: Self = Self(1 << 0);
    /// It ends its block.
    pub const LAST: Self = Self(1 << 1);
    /// There is code for it; the handler is called where that finds no translation or no block.
    pub const NATIVE: Self = Self(1 << 2);
    /// All operations of the block behind it are executed too. With `FLAGS` and `LAST`.
    pub const REST: Self = Self(1 << 3 | Self::FLAGS.0 | Self::LAST.0);

    /// Both sets.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// `self` and, if `yes`, also `other`.
    pub const fn and_if(self, yes: bool, other: Self) -> Self {
        if yes { self.and(other) } else { self }
    }

    /// All of `other` is in it.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

const _: () = assert!(size_of::<Record>() == 16);
