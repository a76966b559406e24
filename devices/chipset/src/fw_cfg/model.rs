//! Items, their directory, and the place that is read from.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::regs;

/// Makes the content of an item when it is selected.
pub type Maker = Box<dyn Fn() -> Vec<u8> + Send>;

/// A file cannot be added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FwCfgError {
    /// The name has no room or is there already.
    #[error("the name {0} of a firmware file is empty, too long, no ASCII, or taken")]
    Name(String),
    /// The directory is full.
    #[error("too many firmware files")]
    Full,
    /// The directory has 32 bits for a size.
    #[error("the firmware file {0} has 4 GiB or more")]
    Size(String),
}

enum Content {
    Bytes(Arc<[u8]>),
    /// Made at each selection, always of this many bytes.
    Made(usize, Maker),
}

impl Content {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Made(len, _) => *len,
        }
    }
}

/// What the device offers.
#[derive(Default)]
pub struct Items {
    items: BTreeMap<u16, Content>,
    /// Files by name; the keys are given out when all are there.
    files: BTreeMap<String, Content>,
}

impl Items {
    /// The items every such device has: signature and features.
    #[must_use]
    pub fn new() -> Self {
        let mut items = Self::default();
        items.put(regs::SIGNATURE, b"QEMU".to_vec());
        let features = regs::FEATURE_PORTS | regs::FEATURE_DMA;
        items.put(regs::ID, features.to_le_bytes().to_vec());
        items
    }

    /// Sets the item of a key below [`regs::FILE_DIRECTORY`] or of the architecture.
    pub fn put(&mut self, key: u16, bytes: impl Into<Arc<[u8]>>) {
        if key < regs::FILE_DIRECTORY || key & regs::ARCHITECTURE != 0 {
            self.items.insert(key, Content::Bytes(bytes.into()));
        }
    }

    /// Adds a file.
    ///
    /// # Errors
    /// [`FwCfgError`] when the directory cannot hold it.
    pub fn add_file(&mut self, name: &str, bytes: impl Into<Arc<[u8]>>) -> Result<(), FwCfgError> {
        self.add(name, Content::Bytes(bytes.into()))
    }

    /// Adds a file that is made anew whenever it is selected: for what depends on the chipset's registers. It always has
    /// `len` bytes: what `maker` gives is cut or filled up with zeros.
    ///
    /// # Errors
    /// [`FwCfgError`] when the directory cannot hold it.
    pub fn add_made_file(
        &mut self,
        name: &str,
        len: usize,
        maker: Maker,
    ) -> Result<(), FwCfgError> {
        self.add(name, Content::Made(len, maker))
    }

    fn add(&mut self, name: &str, content: Content) -> Result<(), FwCfgError> {
        let fits = (1..regs::NAME_BYTES).contains(&name.len());
        if !fits || !name.is_ascii() || name.contains('\0') || self.files.contains_key(name) {
            return Err(FwCfgError::Name(name.to_owned()));
        }
        if self.files.len() >= usize::from(regs::FILE_END - regs::FILE_FIRST) {
            return Err(FwCfgError::Full);
        }
        if u32::try_from(content.len()).is_err() {
            return Err(FwCfgError::Size(name.to_owned()));
        }
        self.files.insert(name.to_owned(), content);
        Ok(())
    }

    /// Gives the files their keys, in the order of their names, and makes the directory.
    fn finish(mut self) -> BTreeMap<u16, Content> {
        let mut directory = (self.files.len() as u32).to_be_bytes().to_vec();
        for (key, (name, content)) in (regs::FILE_FIRST..).zip(self.files) {
            let mut field = [0; regs::NAME_BYTES];
            field[..name.len()].copy_from_slice(name.as_bytes());
            directory.extend((content.len() as u32).to_be_bytes());
            directory.extend(key.to_be_bytes());
            directory.extend([0; 2]);
            directory.extend(field);
            self.items.insert(key, content);
        }
        let directory = Content::Bytes(directory.into());
        self.items.insert(regs::FILE_DIRECTORY, directory);
        self.items
    }
}

/// The device without its ports.
pub struct FwCfg {
    items: BTreeMap<u16, Content>,
    selected: Arc<[u8]>,
    position: usize,
}

impl FwCfg {
    /// The device after reset: the signature is selected.
    #[must_use]
    pub fn new(items: Items) -> Self {
        let mut model = Self {
            items: items.finish(),
            selected: Arc::new([]),
            position: 0,
        };
        model.reset();
        model
    }

    /// Back to the state after power-up.
    pub fn reset(&mut self) {
        self.select(regs::SIGNATURE);
    }

    /// Selects an item, from its start. One that does not exist has no bytes.
    pub fn select(&mut self, key: u16) {
        self.position = 0;
        self.selected = match self.items.get(&(key & !regs::WRITE_CHANNEL)) {
            Some(Content::Bytes(bytes)) => Arc::clone(bytes),
            Some(Content::Made(len, maker)) => {
                let mut bytes = maker();
                bytes.resize(*len, 0);
                bytes.into()
            }
            None => Arc::new([]),
        };
    }

    /// The next bytes; zeros past the end.
    pub fn read(&mut self, data: &mut [u8]) {
        let rest = self.selected.get(self.position..).unwrap_or(&[]);
        let n = rest.len().min(data.len());
        data[..n].copy_from_slice(&rest[..n]);
        data[n..].fill(0);
        self.position += n;
    }

    /// Moves on.
    pub fn skip(&mut self, bytes: u32) {
        let end = self.selected.len();
        self.position = self.position.saturating_add(bytes as usize).min(end);
    }
}
