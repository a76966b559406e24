//! Texts that users write and that have a grammar: what is to be typed on the keyboard.
//!
//! What must hold: no panic and no recursion without end, however long the text; what is pressed is released, in the
//! opposite order; characters have the same keys wherever they stand; a refusal says why.

use machine::Typed;

use crate::{Input, Target};

/// Parts of a text, good and bad.
const PARTS: [&str; 24] = [
    "a",
    "Z",
    "0",
    "<",
    ">",
    "-",
    "<ret>",
    "<lt>",
    "<f1>",
    "<f12>",
    "<f13>",
    "<f+1>",
    "<ctrl-",
    "ctrl-",
    "alt-",
    "shift-",
    "<ctrl-alt-del>",
    "<shift->",
    "\u{e9}",
    "\u{1f600}",
    "\0",
    "\n",
    "<up",
    "",
];
/// The most times a part is repeated: as long as an argument of a program may be.
const REPEATS: usize = 20_000;

/// The target.
#[derive(Default)]
pub struct Text {
    typed: u64,
    refused: u64,
}

impl Text {
    /// The target.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

fn text(input: &mut Input<'_>) -> String {
    let mut text = String::new();
    for _ in 0..input.below(8) {
        match input.below(8) {
            0 => text.push(char::from_u32(input.any::<u32>() >> 11).unwrap_or('x')),
            1 => text.push(char::from(input.any::<u8>() & 0x7f)),
            2 if input.once_in(64) => {
                let part = input.pick(&PARTS);
                text.extend(std::iter::repeat_n(part, input.below(REPEATS)));
                text.push_str(input.pick(&["", "a>", ">", "del>"]));
            }
            _ => text.push_str(input.pick(&PARTS)),
        }
    }
    text
}

/// What is down at the end, if all that goes up was down.
fn still_down(typed: &Typed) -> usize {
    let mut down = Vec::new();
    for event in &typed.0 {
        if event.down {
            down.push(event.key);
        } else {
            assert_eq!(down.pop(), Some(event.key), "released in opposite order");
        }
    }
    down.len()
}

impl Target for Text {
    fn run(&mut self, data: &[u8]) {
        let mut input = Input::new(data);
        let (first, second) = (text(&mut input), text(&mut input));
        let parse = |text: &str| text.parse::<Typed>();
        match (parse(&first), parse(&second)) {
            (Ok(one), Ok(other)) => {
                self.typed += 1;
                assert_eq!(still_down(&one), 0, "a key stays down");
                let both = parse(&format!("{first}{second}")).map(|typed| typed.0);
                let apart = [one.0, other.0].concat();
                assert_eq!(both, Ok(apart), "two texts in one");
            }
            (Err(refusal), _) | (_, Err(refusal)) => {
                self.refused += 1;
                assert!(!refusal.to_string().is_empty());
            }
        }
    }

    fn longest(&self) -> usize {
        96
    }

    fn figures(&self) -> Vec<(&'static str, u64)> {
        vec![("typed", self.typed), ("refused", self.refused)]
    }
}
