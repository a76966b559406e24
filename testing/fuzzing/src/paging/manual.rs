//! Paging as the text of SDM Vol 3 chapter 4 has it, one table after the other. Slow and plain on purpose: this is
//! what the engine is compared with, and it shares nothing with it.

/// The paging mode (4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 32-bit paging (4.3).
    Bits32,
    /// PAE paging (4.4).
    Pae,
    /// 4-level paging (4.5).
    Level4,
}

/// What else decides (4.1.3).
#[derive(Clone, Copy, Debug)]
pub struct Control {
    /// The mode.
    pub kind: Kind,
    /// CR3.
    pub cr3: u64,
    /// CR0.WP.
    pub wp: bool,
    /// CR4.SMEP.
    pub smep: bool,
    /// CR4.SMAP.
    pub smap: bool,
    /// CR4.PSE.
    pub pse: bool,
    /// EFER.NXE.
    pub nxe: bool,
    /// EFLAGS.AC.
    pub ac: bool,
    /// CPL is 3.
    pub cpl3: bool,
    /// MAXPHYADDR.
    pub maxphyaddr: u32,
}

/// The kinds of access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Data read.
    Read,
    /// Data write.
    Write,
    /// Instruction fetch.
    Fetch,
}

/// What comes of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// A physical address.
    Address(u64),
    /// #PF with this error code.
    PageFault(u32),
}

/// Bits `high` to `low` of `value`, where they are.
fn field(value: u64, high: u32, low: u32) -> u64 {
    value & (u64::MAX >> (63 - high)) & (u64::MAX << low)
}

fn bit(value: u64, n: u32) -> bool {
    value >> n & 1 != 0
}

/// Memory of the processor; what is not RAM reads as ones, and writes to it are lost.
fn read(memory: &[u8], at: u64, size: usize) -> u64 {
    let start = usize::try_from(at).unwrap_or(usize::MAX);
    let bytes = start
        .checked_add(size)
        .and_then(|end| memory.get(start..end));
    let mut word = [0; 8];
    match bytes {
        Some(bytes) => word[..size].copy_from_slice(bytes),
        None => word[..size].fill(0xff),
    }
    u64::from_le_bytes(word)
}

fn set_bits(memory: &mut [u8], at: u64, bits: u64) {
    let start = usize::try_from(at).unwrap_or(usize::MAX);
    if let Some(byte) = memory.get_mut(start) {
        *byte |= bits as u8;
    }
}

/// The PDPTEs as MOV to CR3 loads them (4.4.1, Table 4-8); none if a present one has a reserved bit.
pub fn load_pdptes(memory: &[u8], control: Control) -> Option<[u64; 4]> {
    let mut all = [0; 4];
    for (i, pdpte) in (0..).zip(&mut all) {
        *pdpte = read(memory, field(control.cr3, 31, 5) + 8 * i, 8);
        let reserved =
            field(*pdpte, 2, 1) | field(*pdpte, 8, 5) | field(*pdpte, 63, control.maxphyaddr);
        if bit(*pdpte, 0) && reserved != 0 {
            return None;
        }
    }
    Some(all)
}

/// An entry that the walk used.
struct Used {
    at: u64,
    value: u64,
}

/// Where the walk came to an end before rights are looked at.
enum End {
    Page { address: u64 },
    NotPresent,
    Reserved,
}

/// Translates `va`. Sets accessed and dirty flags in `memory` as 4.8 says.
pub fn walk(
    memory: &mut [u8],
    control: Control,
    pdpte: [u64; 4],
    va: u64,
    access: Access,
    user: bool,
) -> Walk {
    let mut used = Vec::new();
    let end = match control.kind {
        Kind::Bits32 => bits32(memory, control, va, &mut used),
        Kind::Pae => pae(memory, control, pdpte, va, &mut used),
        Kind::Level4 => level4(memory, control, va, &mut used),
    };
    let last = used.len().saturating_sub(1);
    let wide = control.kind != Kind::Bits32;
    let result = match end {
        End::NotPresent => Err(0),
        End::Reserved => Err(0b1001),
        End::Page { address } => {
            let user_page = used.iter().all(|entry| bit(entry.value, 2));
            let writable = used.iter().all(|entry| bit(entry.value, 1));
            let no_execute = wide && control.nxe && used.iter().any(|entry| bit(entry.value, 63));
            let page = Page {
                user: user_page,
                writable,
                no_execute,
            };
            if allowed(control, page, access, user) {
                Ok(address)
            } else {
                Err(0b0001)
            }
        }
    };
    // 4.8: the accessed flag of every entry that was used for a translation; the last one's only if the access is
    // allowed, as the dirty flag. Entries above one that ends the walk were used.
    for (i, entry) in used.iter().enumerate() {
        let leads_on = i < last || (result.is_err() && !matches!(end, End::Page { .. }));
        let ended_here = i == last && !matches!(end, End::Page { .. });
        if (leads_on && !ended_here) || (i == last && result.is_ok()) {
            set_bits(memory, entry.at, 1 << 5);
        }
    }
    match result {
        Ok(address) => {
            if access == Access::Write
                && let Some(entry) = used.last()
            {
                set_bits(memory, entry.at, 1 << 6);
            }
            Walk::Address(address)
        }
        Err(mut code) => {
            // 4.7: W/R, U/S, I/D.
            if access == Access::Write {
                code |= 1 << 1;
            }
            if user {
                code |= 1 << 2;
            }
            if access == Access::Fetch && (control.smep || (wide && control.nxe)) {
                code |= 1 << 4;
            }
            Walk::PageFault(code)
        }
    }
}

/// Rights of a page: of all entries together.
struct Page {
    user: bool,
    writable: bool,
    no_execute: bool,
}

/// 4.6.1.
fn allowed(control: Control, page: Page, access: Access, user: bool) -> bool {
    match (user, page.user, access) {
        // Supervisor-mode accesses to supervisor-mode addresses.
        (false, false, Access::Read) => true,
        (false, false, Access::Write) => !control.wp || page.writable,
        (false, false, Access::Fetch) => !page.no_execute,
        // Supervisor-mode accesses to user-mode addresses: implicit ones, which here are those with CPL 3, never
        // profit from EFLAGS.AC.
        (false, true, Access::Read | Access::Write) => {
            let smap_allows = !control.smap || (control.ac && !control.cpl3);
            let write_allows = access == Access::Read || !control.wp || page.writable;
            smap_allows && write_allows
        }
        (false, true, Access::Fetch) => !control.smep && !page.no_execute,
        // User-mode accesses.
        (true, false, _) => false,
        (true, true, Access::Read) => true,
        (true, true, Access::Write) => page.writable,
        (true, true, Access::Fetch) => !page.no_execute,
    }
}

/// 4.3, Tables 4-4 to 4-6.
fn bits32(memory: &[u8], control: Control, va: u64, used: &mut Vec<Used>) -> End {
    let at = field(control.cr3, 31, 12) | field(va, 31, 22) >> 20;
    let pde = read(memory, at, 4);
    used.push(Used { at, value: pde });
    if !bit(pde, 0) {
        return End::NotPresent;
    }
    if bit(pde, 7) && control.pse {
        // PSE-36: bits (M-20):13 are bits (M-1):32 of the address, M the smaller of MAXPHYADDR and 40; the ones
        // above, up to 21, are reserved.
        let m = control.maxphyaddr.min(40);
        let above = m - 20 + 1;
        if above <= 21 && field(pde, 21, above) != 0 {
            return End::Reserved;
        }
        let high = field(pde, m - 20, 13) >> 13 << 32;
        return End::Page {
            address: high | field(pde, 31, 22) | field(va, 21, 0),
        };
    }
    let at = field(pde, 31, 12) | field(va, 21, 12) >> 10;
    let pte = read(memory, at, 4);
    used.push(Used { at, value: pte });
    if !bit(pte, 0) {
        return End::NotPresent;
    }
    End::Page {
        address: field(pte, 31, 12) | field(va, 11, 0),
    }
}

/// 4.4, Tables 4-9 to 4-11.
fn pae(memory: &[u8], control: Control, pdpte: [u64; 4], va: u64, used: &mut Vec<Used>) -> End {
    let m = control.maxphyaddr;
    let pdpte = pdpte[(va >> 30 & 3) as usize];
    if !bit(pdpte, 0) {
        return End::NotPresent;
    }
    let reserved = |entry: u64| {
        let no_xd = bit(entry, 63) && !control.nxe;
        field(entry, 62, m) != 0 || no_xd
    };
    let at = field(pdpte, m - 1, 12) | field(va, 29, 21) >> 18;
    let pde = read(memory, at, 8);
    used.push(Used { at, value: pde });
    if !bit(pde, 0) {
        return End::NotPresent;
    }
    if reserved(pde) {
        return End::Reserved;
    }
    if bit(pde, 7) {
        if field(pde, 20, 13) != 0 {
            return End::Reserved;
        }
        return End::Page {
            address: field(pde, m - 1, 21) | field(va, 20, 0),
        };
    }
    let at = field(pde, m - 1, 12) | field(va, 20, 12) >> 9;
    let pte = read(memory, at, 8);
    used.push(Used { at, value: pte });
    if !bit(pte, 0) {
        return End::NotPresent;
    }
    if reserved(pte) {
        return End::Reserved;
    }
    End::Page {
        address: field(pte, m - 1, 12) | field(va, 11, 0),
    }
}

/// 4.5, Tables 4-15 to 4-20.
fn level4(memory: &[u8], control: Control, va: u64, used: &mut Vec<Used>) -> End {
    let m = control.maxphyaddr;
    let mut table = field(control.cr3, m - 1, 12);
    // The levels by the lowest bit of the linear address that they look at.
    for low in [39, 30, 21, 12] {
        let at = table | field(va, low + 8, low) >> low << 3;
        let entry = read(memory, at, 8);
        used.push(Used { at, value: entry });
        if !bit(entry, 0) {
            return End::NotPresent;
        }
        if field(entry, 51, m) != 0 || (bit(entry, 63) && !control.nxe) {
            return End::Reserved;
        }
        // PS: reserved in a PML4E, a 1-GByte page in a PDPTE, a 2-MByte page in a PDE, PAT in a PTE.
        let large = bit(entry, 7);
        match low {
            39 if large => return End::Reserved,
            30 | 21 if large => {
                if field(entry, low - 1, 13) != 0 {
                    return End::Reserved;
                }
                return End::Page {
                    address: field(entry, m - 1, low) | field(va, low - 1, 0),
                };
            }
            12 => {
                return End::Page {
                    address: field(entry, m - 1, 12) | field(va, 11, 0),
                };
            }
            _ => table = field(entry, m - 1, 12),
        }
    }
    unreachable!("the last level ends the walk")
}
