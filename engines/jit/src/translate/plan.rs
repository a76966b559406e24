//! Which blocks of a region are joined, in which rounds, and where they lead ([`super::region`]).
//!
//! A block that leads to itself, a loop inside the others, has several copies in each round. Its first one may be reached
//! from everywhere, the others from the one before only: so there what is known of registers and windows goes on.

use std::collections::{BTreeMap, BTreeSet};

/// Most rounds.
const ROUNDS: usize = 4;
/// Most rounds of those where a block leads to itself.
const ROUNDS_OF_COPIES: usize = 2;
/// Copies, in each round, of a block that leads to itself. To all but the first there is one way.
const COPIES: usize = 4;
/// Instructions up to which there are several.
const SEVERAL: usize = 192;

/// A joined block: round times [`COPIES`] and which copy, number of the block.
pub(super) type Node = (usize, usize);

/// Where a jump inside a region leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Label {
    Node(Node),
    Gate(usize),
    /// The gate for those who come from a joined block.
    Inner(usize),
}

/// Which joined blocks there are and where they lead.
#[derive(Default)]
pub(super) struct Plan {
    /// The blocks, in the order in which they are written.
    order: Vec<usize>,
    /// The place in that of each.
    place: Vec<usize>,
    /// Where each block leads inside the region.
    pub next: Vec<Vec<usize>>,
    asks: Vec<bool>,
    /// Blocks that have [`COPIES`].
    copied: Vec<bool>,
    rounds: usize,
    /// Ways that lead to a joined block without a gate.
    ways: BTreeMap<Node, usize>,
    /// Blocks that have a gate.
    pub gates: BTreeSet<usize>,
    /// Instructions from the beginning of a joined block on to that of the last one that is not asked before.
    pub longest: BTreeMap<Node, i32>,
}

impl Plan {
    pub fn new(next: Vec<Vec<usize>>, asks: Vec<bool>, instructions: &[i32]) -> Self {
        let blocks = next.len();
        let mut plan = Self {
            next,
            asks,
            rounds: 1,
            place: vec![0; blocks],
            ..Self::default()
        };
        plan.put_in_order(0, &mut vec![false; blocks]);
        plan.order.reverse();
        for (place, block) in plan.order.iter().enumerate() {
            plan.place[*block] = place;
        }
        let back = |b: usize| plan.next[b].iter().any(|n| plan.place[*n] <= plan.place[b]);
        let again = plan.order.iter().any(|b| !plan.asks[*b] && back(*b));
        let short = |b: usize| instructions[b] as usize * COPIES <= SEVERAL;
        let copied = |b: usize| !plan.asks[b] && plan.next[b].contains(&b) && short(b);
        plan.copied = (0..blocks).map(copied).collect();
        let most = match plan.copied.contains(&true) {
            true if blocks == 1 => 1,
            true => ROUNDS_OF_COPIES,
            false => ROUNDS,
        };
        let copies = plan
            .copied
            .iter()
            .map(|copied| if *copied { COPIES } else { 1 });
        let all = instructions.iter().zip(copies);
        let all: usize = all.map(|(n, copies)| *n as usize * copies).sum();
        if again {
            plan.rounds = (SEVERAL / all.max(1)).clamp(1, most);
        }
        plan.reach();
        plan.measure(instructions);
        plan
    }

    /// Depth first, so that reversed it is an order in which what is behind a jump that is not taken comes next.
    fn put_in_order(&mut self, block: usize, seen: &mut [bool]) {
        seen[block] = true;
        for next in self.next[block].clone() {
            if !seen[next] {
                self.put_in_order(next, seen);
            }
        }
        self.order.push(block);
    }

    /// There is a way from the end of a block to the beginning of another one, or of itself.
    pub fn leads_to(&self, from: usize, to: usize) -> bool {
        let mut seen = vec![false; self.next.len()];
        let mut left = self.next[from].clone();
        while let Some(block) = left.pop() {
            if block == to {
                return true;
            }
            if !std::mem::replace(&mut seen[block], true) {
                left.extend(&self.next[block]);
            }
        }
        false
    }

    /// Where a way from a joined block to another block leads.
    pub fn follow(&self, (round, from): Node, to: usize) -> Label {
        let first = round - round % COPIES;
        let next = first + COPIES;
        if self.asks[from] {
            Label::Gate(to)
        } else if to == from && self.copied[to] && round + 1 < next {
            Label::Node((round + 1, to))
        } else if self.place[to] > self.place[from] {
            Label::Node((first, to))
        } else if next < self.rounds * COPIES {
            Label::Node((next, to))
        } else {
            Label::Gate(to)
        }
    }

    /// Finds the joined blocks that are ever reached, and the gates.
    fn reach(&mut self) {
        let mut left = vec![(0, 0)];
        let mut seen = BTreeSet::from([(0, 0)]);
        self.gates.insert(0);
        while let Some(node) = left.pop() {
            for to in self.next[node.1].clone() {
                let to = match self.follow(node, to) {
                    Label::Node(to) => {
                        *self.ways.entry(to).or_default() += 1;
                        to
                    }
                    Label::Gate(to) | Label::Inner(to) => {
                        self.gates.insert(to);
                        (0, to)
                    }
                };
                if seen.insert(to) {
                    left.push(to);
                }
            }
        }
        // Where ways meet nothing is known of what came before, so a gate costs nothing more.
        for node in seen {
            let ways = self.ways.entry(node).or_default();
            if node.0 == 0 && *ways != 1 {
                self.gates.insert(node.1);
            }
        }
    }

    fn measure(&mut self, instructions: &[i32]) {
        for node in self.nodes().into_iter().rev() {
            let block = node.1;
            let next = self.next[block].iter();
            let behind = next.filter_map(|to| match self.follow(node, *to) {
                Label::Node(to) => {
                    let rest = self.longest.get(&to).copied().unwrap_or(0);
                    Some(instructions[block] + rest)
                }
                Label::Gate(_) | Label::Inner(_) => None,
            });
            let longest = behind.max().unwrap_or(0);
            self.longest.insert(node, longest);
        }
    }

    /// There is one way to it, so what is known at its end is known at its beginning.
    pub fn one_way(&self, node: Node) -> bool {
        let gate = node.0 == 0 && self.gates.contains(&node.1);
        !gate && self.ways.get(&node) == Some(&1)
    }

    /// All joined blocks in the order in which they are written.
    pub fn nodes(&self) -> Vec<Node> {
        let mut nodes = Vec::new();
        for round in 0..self.rounds {
            for &block in &self.order {
                nodes.extend((0..COPIES).map(|copy| (round * COPIES + copy, block)));
            }
        }
        nodes.retain(|node| self.ways.contains_key(node));
        nodes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A loop in a loop: 0 leads to 1, which leads to itself and to 2, which leads to 0.
    fn nested() -> Plan {
        let next = vec![vec![1], vec![1, 2], vec![0]];
        Plan::new(next, vec![false; 3], &[3, 10, 4])
    }

    #[test]
    fn ways_lead_to_what_is_written_later() {
        let plan = nested();
        let nodes = plan.nodes();
        let place = |node: &Node| nodes.iter().position(|n| n == node);
        let mut seen = 0;
        for node in &nodes {
            for to in &plan.next[node.1] {
                if let Label::Node(to) = plan.follow(*node, *to) {
                    assert!(place(&to) > place(node), "{node:?} {to:?}");
                    seen += 1;
                }
            }
        }
        assert!(seen > nodes.len());
    }

    #[test]
    fn there_is_one_way_to_further_copies() {
        let plan = nested();
        assert_eq!(plan.copied, [false, true, false]);
        for round in 0..plan.rounds {
            for copy in 1..COPIES {
                assert!(plan.one_way((round * COPIES + copy, 1)), "{round} {copy}");
            }
        }
        // Out of each of them; and into the next round.
        assert_eq!(plan.ways[&(0, 2)], COPIES);
        assert_eq!(plan.follow((COPIES - 1, 1), 1), Label::Node((COPIES, 1)));
    }

    #[test]
    fn the_longest_way_is_up_to_the_last_block_before_a_gate() {
        let plan = nested();
        assert_eq!(plan.rounds, 2);
        // In both rounds all copies; in front of block 2 of the second one there is no gate, behind it is one.
        assert_eq!(plan.longest[&(0, 0)], 2 * (3 + 4 * 10) + 4);
        let single = Plan::new(vec![vec![0]], vec![false], &[5]);
        assert_eq!(single.longest[&(0, 0)], 3 * 5);
        assert_eq!(single.follow((3, 0), 0), Label::Gate(0));
    }
}
