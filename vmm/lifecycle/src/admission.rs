//! What a VM may be asked in which state.

/// Where a VM is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Built, no thread runs.
    Created,
    /// vCPUs run.
    Running,
    /// vCPUs have been asked to leave.
    Stopping,
    /// No vCPU runs; the result is there.
    Stopped,
}

/// What happens to a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The user starts it.
    Start,
    /// Something ends the run: the user, the guest, the time limit, a failure.
    End,
    /// The last vCPU has left.
    AllLeft,
}

/// The event cannot happen in this state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a VM that is {state:?} does not admit {event:?}")]
pub struct Refused {
    /// The state.
    pub state: State,
    /// The event.
    pub event: Event,
}

/// The state after `event`.
///
/// A second reason to end is admitted and changes nothing: the first one is the outcome.
///
/// # Errors
/// [`Refused`] when the event has no place in the state.
pub fn admit(state: State, event: Event) -> Result<State, Refused> {
    match (state, event) {
        (State::Created, Event::Start) => Ok(State::Running),
        (State::Created, Event::End) => Ok(State::Stopped),
        (State::Running | State::Stopping, Event::End) => Ok(State::Stopping),
        // vCPUs leave of themselves only for a reason that ends the run, which comes first.
        (State::Stopping, Event::AllLeft) => Ok(State::Stopped),
        (State::Stopped, Event::End) => Ok(State::Stopped),
        (State::Created, Event::AllLeft)
        | (State::Running, Event::Start | Event::AllLeft)
        | (State::Stopping, Event::Start)
        | (State::Stopped, Event::Start | Event::AllLeft) => Err(Refused { state, event }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 4] = [
        State::Created,
        State::Running,
        State::Stopping,
        State::Stopped,
    ];
    const EVENTS: [Event; 3] = [Event::Start, Event::End, Event::AllLeft];

    fn rank(state: State) -> usize {
        STATES.iter().position(|s| *s == state).expect("a state")
    }

    #[test]
    fn a_life_goes_forward_only() {
        for s in STATES {
            for e in EVENTS {
                if let Ok(next) = admit(s, e) {
                    assert!(rank(next) >= rank(s), "{s:?} {e:?}");
                }
            }
        }
    }

    #[test]
    fn ending_is_admitted_always_and_starting_once() {
        for s in STATES {
            assert!(admit(s, Event::End).is_ok());
            assert_eq!(admit(s, Event::Start).is_ok(), s == State::Created);
        }
    }

    /// Every sequence of events up to a length leads to Stopped once End and AllLeft have happened in it.
    #[test]
    fn every_sequence_that_ends_and_empties_is_stopped() {
        fn walk(state: State, ended: bool, emptied: bool, depth: u32) {
            if ended && emptied {
                assert_eq!(state, State::Stopped);
            }
            if depth == 0 {
                return;
            }
            for e in EVENTS {
                if let Ok(next) = admit(state, e) {
                    let ended = ended || e == Event::End;
                    walk(next, ended, emptied || e == Event::AllLeft, depth - 1);
                }
            }
        }
        walk(State::Created, false, false, 8);
    }
}
