//! Encodings that nobody writes.

use super::{End, Machine};

/// A REX prefix that other prefixes or another REX follow means nothing (SDM Vol 2 2.2.1).
#[test]
fn rex_counts_only_before_the_opcode() {
    let cases: [(&[u8], u64); 4] = [
        // ADD AX, DX, with 66h behind REX.W; behind REX.B.
        (&[0x48, 0x66, 0x01, 0xd0], 0x1111_1111_1111_3333),
        (&[0x41, 0x66, 0x01, 0xd0], 0x1111_1111_1111_3333),
        // ADD EAX, EDX, with REX.W before REX.
        (&[0x48, 0x40, 0x01, 0xd0], 0x3333_3333),
        // ADD RAX, RDX.
        (&[0x41, 0x48, 0x01, 0xd0], 0x3333_3333_3333_3333),
    ];
    for (program, sum) in cases {
        let mut m = Machine::translated();
        m.state.gpr[0] = 0x1111_1111_1111_1111;
        m.state.gpr[2] = 0x2222_2222_2222_2222;
        assert_eq!(m.run(program), End::Whole);
        assert_eq!(m.state.gpr[0], sum, "{program:02x?}");
    }
}
