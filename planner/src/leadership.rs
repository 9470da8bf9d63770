//! Who plans: one active planner and any number of standbys. Pure: `step(state, now, event) -> (state, actions)`.
//!
//! ```text
//!              silence, or nobody                 read to the end
//!   standby ─────────────────────▶ claiming ───────────────────────▶ active
//!      ▲                              │  └──▶ elected ── a wait ───▶    │
//!      └────────── lost ──────────────┴──── lost, or a higher epoch ────┘
//! ```
//!
//! The records of `allocation.control` are the only sign of life: the active planner's heartbeat (key `planner`) every
//! second, or a plan. A standby that hears nothing for [`SILENCE_MS`] claims: it opens the shared transactional id,
//! which fences every earlier writer, reads the control topic to its end and leads with the highest epoch + 1. If it finds
//! records there that it had not heard, the deposed planner has shown itself just before the fence and may act for a
//! while yet: then the claimer waits for another silence before it leads, and shows itself by heartbeats meanwhile, or a
//! third one would claim in that silence, and so on for ever.
//!
//! Invariants (property-tested against a model of the log):
//! - Epochs in the log never fall, and one epoch has one planner: a claim reads what was committed before its fence,
//!   and nothing of an earlier writer is committed after it.
//! - Two planners never act at the same time: an active one acts ([`Leadership::may_act`]) for at most [`SILENCE_MS`]
//!   from the begin of its last committed transaction, which no standby has missed before.
//! - The active planner is succeeded within [`SILENCE_MS`] + [`JITTER_MS`] of its last record plus the time of a claim.
//! - Silence counts only while this process listened: one that was stopped for a while begins to count anew.
//!
//! `now` is a monotonic time of this process; clocks of different machines are never compared.

use schemas::EpochMs;

/// Time between two heartbeats.
pub const BEAT_MS: i64 = 1_000;
/// Silence after which a standby claims.
pub const SILENCE_MS: i64 = 3_000;
/// Standbys claim up to so much later, each at a moment of its own.
pub const JITTER_MS: i64 = 500;
/// A process that did not look for so long was not listening.
pub const DEAF_MS: i64 = 2_000;
/// Longest extra wait of a planner that lost its claims again and again.
const BACK_OFF_MOST_MS: i64 = 8_000;

/// Who this planner is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Follows; claims at this time if nothing is heard until then.
    Standby {
        /// When to claim.
        claim_at_ms: i64,
    },
    /// Takes the transactional id and reads the topic to its end.
    Claiming {
        /// Somebody was heard meanwhile.
        heard: bool,
    },
    /// Has the id and shows itself; leads when the planner before can act no more.
    Elected {
        /// The epoch to lead with.
        epoch: u64,
        /// When the next heartbeat is due.
        beat_at_ms: i64,
        /// When.
        lead_at_ms: i64,
    },
    /// Plans.
    Active {
        /// Its epoch.
        epoch: u64,
        /// When the next heartbeat is due.
        beat_at_ms: i64,
        /// Until when it may act without a further commit.
        act_until_ms: i64,
    },
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Time passed.
    Tick,
    /// A record of this epoch was read from the control topic.
    Heard {
        /// Its epoch.
        epoch: u64,
        /// It says that its planner has ended in order.
        resigned: bool,
    },
    /// The id is ours and the topic is read to its end, where this is the highest epoch; 0 for none.
    Claimed {
        /// Highest epoch in the topic.
        highest_epoch: u64,
        /// Somebody has written since we heard the last record.
        unheard: bool,
    },
    /// A transaction of ours, begun at this time, is committed.
    Committed {
        /// When it was begun.
        begun_ms: i64,
    },
    /// A claim or a transaction failed, or we are fenced: the id is not ours any more.
    Lost,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Open the transactional id, read the topic to its end, and tell [`Event::Claimed`] or [`Event::Lost`].
    Claim,
    /// Publish a heartbeat of this epoch, and decide nothing yet.
    Announce {
        /// The new epoch.
        epoch: u64,
    },
    /// Publish a heartbeat of this epoch, then plan.
    Lead {
        /// The new epoch.
        epoch: u64,
    },
    /// Publish a heartbeat.
    Beat,
    /// Drop the transactional id and decide nothing more.
    StepDown,
}

/// The state of one planner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leadership {
    role: Role,
    /// Makes the moments of this planner its own.
    seed: u64,
    /// Claims and reigns lost since the last sign of life of anyone.
    losses: u32,
    /// Moments drawn so far.
    drawn: u64,
    looked_ms: i64,
}

/// How a planner begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// The topic knows no planner, or its last one has resigned.
    Nobody,
    /// There may be an active one.
    Somebody,
}

impl Leadership {
    /// A standby that begins to listen at `now_ms`; it claims at once where nobody leads.
    pub fn new(found: Found, seed: u64, now_ms: i64) -> Self {
        let mut state =
            Leadership { role: Role::Standby { claim_at_ms: now_ms }, seed, losses: 0, drawn: 0, looked_ms: now_ms };
        if found == Found::Somebody {
            state.role = state.listen(now_ms);
        }
        state
    }

    /// Who this planner is.
    pub fn role(&self) -> Role {
        self.role
    }

    /// True if orders may be given to the provider: no standby can have missed us yet.
    pub fn may_act(&self, now_ms: i64) -> bool {
        matches!(self.role, Role::Active { act_until_ms, .. } if now_ms < act_until_ms)
    }

    /// When [`Event::Tick`] is due next.
    pub fn wake_at_ms(&self) -> i64 {
        let due_ms = match self.role {
            Role::Standby { claim_at_ms } => claim_at_ms,
            Role::Claiming { .. } => i64::MAX,
            Role::Elected { lead_at_ms, beat_at_ms, .. } => lead_at_ms.min(beat_at_ms),
            Role::Active { beat_at_ms, .. } => beat_at_ms,
        };
        due_ms.min(self.looked_ms + DEAF_MS / 4)
    }

    /// Evenly from 0 to `most_ms`, another one at each call. SplitMix64 (Steele, Lea, Flood 2014).
    fn draw(&mut self, most_ms: i64) -> i64 {
        self.drawn += 1;
        let mut z = self.seed.wrapping_add(self.drawn.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % most_ms.max(1).unsigned_abs()) as i64
    }

    /// A standby that heard somebody at `now_ms`.
    fn listen(&mut self, now_ms: i64) -> Role {
        let jitter_ms = self.draw(JITTER_MS);
        Role::Standby { claim_at_ms: now_ms + SILENCE_MS + jitter_ms }
    }

    /// A standby that lost at `now_ms`: the longer the more often.
    fn back_off(&mut self, now_ms: i64) -> Role {
        let most_ms = (JITTER_MS << self.losses.min(10)).min(BACK_OFF_MOST_MS);
        self.losses = self.losses.saturating_add(1);
        let jitter_ms = self.draw(most_ms);
        Role::Standby { claim_at_ms: now_ms + SILENCE_MS + jitter_ms }
    }
}

fn lead(epoch: u64, now_ms: i64, actions: &mut Vec<Action>) -> Role {
    actions.push(Action::Lead { epoch });
    // It acts only after its first commit.
    Role::Active { epoch, beat_at_ms: now_ms + BEAT_MS, act_until_ms: i64::MIN }
}

/// The next state, and what to do now, in order. `now_ms` never falls.
pub fn step(mut state: Leadership, now_ms: EpochMs, event: Event) -> (Leadership, Vec<Action>) {
    let was_deaf = now_ms - state.looked_ms > DEAF_MS;
    state.looked_ms = now_ms;
    let mut actions = Vec::new();
    state.role = match (state.role, event) {
        (Role::Standby { .. }, Event::Heard { resigned: true, .. }) => {
            state.losses = 0;
            Role::Standby { claim_at_ms: now_ms + state.draw(JITTER_MS) }
        }
        (Role::Standby { .. }, Event::Heard { .. }) => {
            state.losses = 0;
            state.listen(now_ms)
        }
        (Role::Standby { .. }, Event::Tick) if was_deaf => state.listen(now_ms),
        (Role::Standby { claim_at_ms }, Event::Tick) if now_ms >= claim_at_ms => {
            actions.push(Action::Claim);
            Role::Claiming { heard: false }
        }
        (Role::Claiming { .. }, Event::Heard { .. }) => Role::Claiming { heard: true },
        (Role::Claiming { heard }, Event::Claimed { highest_epoch, unheard }) if heard || unheard => {
            let epoch = highest_epoch.saturating_add(1);
            actions.push(Action::Announce { epoch });
            Role::Elected { epoch, beat_at_ms: now_ms + BEAT_MS, lead_at_ms: now_ms + SILENCE_MS }
        }
        (Role::Claiming { .. }, Event::Claimed { highest_epoch, .. }) => {
            lead(highest_epoch.saturating_add(1), now_ms, &mut actions)
        }
        (Role::Elected { epoch, lead_at_ms, .. }, Event::Tick) if now_ms >= lead_at_ms => {
            lead(epoch, now_ms, &mut actions)
        }
        (Role::Elected { epoch, beat_at_ms, lead_at_ms }, Event::Tick) if now_ms >= beat_at_ms => {
            actions.push(Action::Announce { epoch });
            Role::Elected { epoch, beat_at_ms: now_ms + BEAT_MS, lead_at_ms }
        }
        (Role::Claiming { .. } | Role::Elected { .. } | Role::Active { .. }, Event::Lost) => {
            actions.push(Action::StepDown);
            state.back_off(now_ms)
        }
        (Role::Elected { epoch, .. } | Role::Active { epoch, .. }, Event::Heard { epoch: theirs, .. })
            if theirs > epoch =>
        {
            actions.push(Action::StepDown);
            state.losses = 0;
            state.listen(now_ms)
        }
        (Role::Active { epoch, beat_at_ms, act_until_ms }, Event::Committed { begun_ms }) => {
            state.losses = 0;
            Role::Active {
                epoch,
                beat_at_ms: beat_at_ms.max(begun_ms + BEAT_MS),
                act_until_ms: act_until_ms.max(begun_ms + SILENCE_MS),
            }
        }
        (Role::Active { epoch, beat_at_ms, act_until_ms }, Event::Tick) if now_ms >= beat_at_ms => {
            actions.push(Action::Beat);
            Role::Active { epoch, beat_at_ms: now_ms + BEAT_MS, act_until_ms }
        }
        (role, _) => role,
    };
    (state, actions)
}

#[cfg(test)]
#[path = "leadership_tests.rs"]
mod tests;
