//! The 8259A and the pair of them in a PC.
//!
//! An edge-triggered request stays latched until it is acknowledged, also if the line falls before; the
//! chip would then answer with the spurious vector of input 7. So a device may pulse its line.

use super::regs;

/// Which initialization word the odd port takes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    /// OCW1, the mask.
    Ocw1,
    /// The vector base.
    Icw2,
    /// The cascade.
    Icw3,
    /// The mode.
    Icw4,
}

/// One 8259A.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pic {
    /// Bits of ELCR for this chip.
    level_triggered: u8,
    /// Levels of the inputs.
    lines: u8,
    irr: u8,
    isr: u8,
    imr: u8,
    /// ICW2, low three bits zero.
    vector_base: u8,
    /// Input of highest priority.
    first: u8,
    expect: Expect,
    single: bool,
    needs_icw4: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    special_fully_nested: bool,
    read_isr: bool,
    poll: bool,
}

impl Default for Pic {
    fn default() -> Self {
        Self::new()
    }
}

impl Pic {
    /// A chip after power-up, with every input masked until it is initialized.
    #[must_use]
    pub fn new() -> Self {
        Self {
            level_triggered: 0,
            lines: 0,
            irr: 0,
            isr: 0,
            imr: 0xff,
            vector_base: 0,
            first: 0,
            expect: Expect::Ocw1,
            single: false,
            needs_icw4: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_mask: false,
            special_fully_nested: false,
            read_isr: false,
            poll: false,
        }
    }

    fn reset(&mut self) {
        let lines = self.lines;
        *self = Self {
            lines,
            ..Self::new()
        };
    }

    /// Drives input `n` (0 to 7).
    pub fn set_line(&mut self, n: u8, high: bool) {
        let bit = 1 << (n & 7);
        if high {
            if self.level_triggered & bit != 0 || self.lines & bit == 0 {
                self.irr |= bit;
            }
            self.lines |= bit;
        } else {
            self.lines &= !bit;
            if self.level_triggered & bit != 0 {
                self.irr &= !bit;
            }
        }
    }

    fn set_level_triggered(&mut self, mask: u8) {
        self.level_triggered = mask;
        self.irr = self.irr & !mask | self.lines & mask;
    }

    /// How many steps below the highest priority an input is.
    fn rank(&self, n: u8) -> u8 {
        n.wrapping_sub(self.first) & 7
    }

    /// The input of highest priority among `bits`.
    fn highest(&self, bits: u8) -> Option<u8> {
        (0..8u8)
            .map(|rank| (self.first + rank) & 7)
            .find(|&n| bits & (1 << n) != 0)
    }

    /// The input whose request the chip passes on now. `cascade` is the input of a slave, which in special fully
    /// nested mode is not held back by its own service.
    fn pending(&self, cascade: Option<u8>) -> Option<u8> {
        let request = self.highest(self.irr & !self.imr)?;
        let mut in_service = self.isr;
        if self.special_mask {
            // A level that is masked while in service holds nothing back (8259A datasheet, special mask mode).
            in_service &= !self.imr;
        }
        // In special fully nested mode the slave's service holds back what is lower, but not the slave.
        let nests = self.special_fully_nested && cascade == Some(request);
        match self.highest(in_service) {
            Some(n) if n == request && nests => Some(request),
            Some(n) if self.rank(n) <= self.rank(request) => None,
            _ => Some(request),
        }
    }

    /// Enters service of input `n` (first INTA pulse, or a poll).
    fn serve(&mut self, n: u8) {
        let bit = 1 << n;
        if self.level_triggered & bit == 0 {
            self.irr &= !bit;
        }
        if !self.auto_eoi {
            self.isr |= bit;
        } else if self.rotate_on_auto_eoi {
            self.first = (n + 1) & 7;
        }
    }

    /// The vector of input `n`.
    fn vector(&self, n: u8) -> u8 {
        self.vector_base | n
    }

    fn write_command(&mut self, value: u8) {
        if value & regs::ICW1 != 0 {
            self.write_icw1(value);
        } else if value & regs::OCW3 != 0 {
            if value & regs::OCW3_ESMM != 0 {
                self.special_mask = value & regs::OCW3_SMM != 0;
            }
            self.poll = value & regs::OCW3_P != 0;
            if value & regs::OCW3_RR != 0 {
                self.read_isr = value & regs::OCW3_RIS != 0;
            }
        } else {
            self.write_ocw2(value);
        }
    }

    /// ICW1 clears the edge detectors, the mask and the modes. The trigger mode bit is ELCR's on a PC.
    fn write_icw1(&mut self, value: u8) {
        self.irr &= self.level_triggered;
        self.isr = 0;
        self.imr = 0;
        self.first = 0;
        self.single = value & regs::ICW1_SNGL != 0;
        self.needs_icw4 = value & regs::ICW1_IC4 != 0;
        self.auto_eoi = false;
        self.rotate_on_auto_eoi = false;
        self.special_mask = false;
        self.special_fully_nested = false;
        self.read_isr = false;
        self.poll = false;
        self.expect = Expect::Icw2;
    }

    fn write_ocw2(&mut self, value: u8) {
        let level = value & 7;
        match value >> 5 {
            0 => self.rotate_on_auto_eoi = false,
            1 => {
                self.end_of_interrupt();
            }
            3 => self.isr &= !(1 << level),
            4 => self.rotate_on_auto_eoi = true,
            5 => {
                if let Some(n) = self.end_of_interrupt() {
                    self.first = (n + 1) & 7;
                }
            }
            6 => self.first = (level + 1) & 7,
            7 => {
                self.isr &= !(1 << level);
                self.first = (level + 1) & 7;
            }
            // No operation.
            _ => {}
        }
    }

    /// Non-specific EOI; in special mask mode a masked level is not cleared by it.
    fn end_of_interrupt(&mut self) -> Option<u8> {
        let bits = if self.special_mask {
            self.isr & !self.imr
        } else {
            self.isr
        };
        let n = self.highest(bits)?;
        self.isr &= !(1 << n);
        Some(n)
    }

    fn write_data(&mut self, value: u8) {
        self.expect = match self.expect {
            Expect::Ocw1 => {
                self.imr = value;
                Expect::Ocw1
            }
            Expect::Icw2 => {
                self.vector_base = value & 0xf8;
                match (self.single, self.needs_icw4) {
                    (false, _) => Expect::Icw3,
                    (true, true) => Expect::Icw4,
                    (true, false) => Expect::Ocw1,
                }
            }
            // The board's wiring fixes the cascade.
            Expect::Icw3 if self.needs_icw4 => Expect::Icw4,
            Expect::Icw3 => Expect::Ocw1,
            Expect::Icw4 => {
                self.auto_eoi = value & regs::ICW4_AEOI != 0;
                self.special_fully_nested = value & regs::ICW4_SFNM != 0;
                Expect::Ocw1
            }
        };
    }

    fn read_command(&self) -> u8 {
        if self.read_isr { self.isr } else { self.irr }
    }
}

/// Master and slave, and the two edge/level control registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PicPair {
    master: Pic,
    slave: Pic,
}

impl PicPair {
    /// The pair after power-up.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Back to the state after power-up; the inputs keep their levels.
    pub fn reset(&mut self) {
        self.master.reset();
        self.slave.reset();
        self.cascade();
    }

    /// Drives ISA interrupt `irq` (0 to 15); 2 is the cascade and cannot be driven.
    pub fn set_line(&mut self, irq: u8, high: bool) {
        match irq {
            regs::CASCADE => {}
            0..8 => self.master.set_line(irq, high),
            8..16 => {
                self.slave.set_line(irq - 8, high);
                self.cascade();
            }
            _ => {}
        }
    }

    /// Carries the slave's output to the master's input.
    fn cascade(&mut self) {
        let output = self.slave.pending(None).is_some();
        // The output falls during each acknowledge, so that a further request is a new edge.
        if !output {
            self.master.irr &= !(1 << regs::CASCADE);
        }
        self.master.set_line(regs::CASCADE, output);
    }

    /// The level of INTR.
    #[must_use]
    pub fn intr(&self) -> bool {
        self.master.pending(Some(regs::CASCADE)).is_some()
    }

    /// The INTA cycle: the vector, spurious (input 7 of the chip that has none) if no request is left.
    pub fn acknowledge(&mut self) -> u8 {
        let Some(n) = self.master.pending(Some(regs::CASCADE)) else {
            return self.master.vector(7);
        };
        self.master.serve(n);
        if n != regs::CASCADE {
            return self.master.vector(n);
        }
        let vector = match self.slave.pending(None) {
            Some(n) => {
                self.slave.serve(n);
                self.slave.vector(n)
            }
            None => self.slave.vector(7),
        };
        self.recascade();
        vector
    }

    /// As [`Self::cascade`] after the slave was acknowledged: a request that is left makes a new edge.
    fn recascade(&mut self) {
        self.master.set_line(regs::CASCADE, false);
        self.cascade();
    }

    fn chip(&mut self, slave: bool) -> &mut Pic {
        if slave {
            &mut self.slave
        } else {
            &mut self.master
        }
    }

    /// Reads the even (`odd` false) or odd port of a chip.
    pub fn read(&mut self, slave: bool, odd: bool) -> u8 {
        let cascade = (!slave).then_some(regs::CASCADE);
        let chip = self.chip(slave);
        if !std::mem::take(&mut chip.poll) {
            return if odd { chip.imr } else { chip.read_command() };
        }
        let Some(n) = chip.pending(cascade) else {
            return 0;
        };
        chip.serve(n);
        if slave {
            self.recascade();
        }
        0x80 | n
    }

    /// Writes the even (`odd` false) or odd port of a chip.
    pub fn write(&mut self, slave: bool, odd: bool, value: u8) {
        let chip = self.chip(slave);
        if odd {
            chip.write_data(value)
        } else {
            chip.write_command(value)
        }
        if slave {
            self.cascade();
        } else if value & regs::ICW1 != 0 && !odd {
            // The master's edge detector was cleared; a slave that still requests is seen again.
            self.recascade();
        }
    }

    /// Reads edge/level control register 0 or 1.
    #[must_use]
    pub fn read_elcr(&self, slave: bool) -> u8 {
        if slave {
            self.slave.level_triggered
        } else {
            self.master.level_triggered
        }
    }

    /// Writes edge/level control register 0 or 1.
    pub fn write_elcr(&mut self, slave: bool, value: u8) {
        self.chip(slave)
            .set_level_triggered(value & regs::ELCR_WRITABLE[usize::from(slave)]);
        self.cascade();
    }
}
