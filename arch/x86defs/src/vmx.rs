//! VT-x: VMCS fields, controls, exit reasons (SDM Vol 3 chapters 24 to 28 and appendices A to C).
