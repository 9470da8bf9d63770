//! Offsets that the members of one group commit, each for the partitions it was given: pure.
//!
//! Every partition's offset is a register. [`check`] demands of each reading that what it returned was
//! written, and was not overwritten for certain before the reading began; and of each membership that it
//! cannot commit any more once somebody has been told of a later generation.

use crate::history::{Partition, Tick};

/// A commit that was not refused.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Commit {
    pub(crate) partition: Partition,
    /// Unique over the history.
    pub(crate) offset: i64,
    pub(crate) sent: Tick,
    pub(crate) acknowledged: Option<Tick>,
    /// The membership in which it was made.
    pub(crate) generation: i32,
    pub(crate) joined: Tick,
}

/// A committed offset that was read, -1 for none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    pub(crate) partition: Partition,
    pub(crate) offset: i64,
    pub(crate) sent: Tick,
    pub(crate) got: Tick,
}

/// A member was told that it belongs to this generation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Membership {
    pub(crate) generation: i32,
    pub(crate) sent: Tick,
    pub(crate) answered: Tick,
}

/// What the members of one group did and were told.
#[derive(Debug, Clone, Default)]
pub(crate) struct Crew {
    pub(crate) commits: Vec<Commit>,
    pub(crate) readings: Vec<Reading>,
    pub(crate) memberships: Vec<Membership>,
}

impl Crew {
    /// Takes in what another member did.
    pub(crate) fn merge(&mut self, other: Self) {
        self.commits.extend(other.commits);
        self.readings.extend(other.readings);
        self.memberships.extend(other.memberships);
    }
}

/// Everything that is wrong; empty when all is well.
pub(crate) fn check(crew: &Crew) -> Vec<String> {
    let mut wrong = Vec::new();
    // By when a commit had happened for certain: by its answer, or by a reading of it.
    let mut commits = crew.commits.clone();
    for reading in &crew.readings {
        let found = commits.iter_mut().find(|c| (c.partition, c.offset) == (reading.partition, reading.offset));
        match found {
            Some(commit) if commit.sent < reading.got => {
                commit.acknowledged = Some(commit.acknowledged.map_or(reading.got, |known| known.min(reading.got)));
            }
            None if reading.offset == -1 => {}
            _ => wrong.push(format!("nobody had committed what was read: {reading:?}")),
        }
    }
    for reading in &crew.readings {
        let of_it = |c: &&Commit| c.partition == reading.partition;
        let settled = commits.iter().filter(of_it).filter(|c| c.acknowledged.is_some_and(|at| at < reading.sent));
        let Some(newest) = settled.max_by_key(|c| c.sent) else { continue };
        let read = commits.iter().filter(of_it).find(|c| c.offset == reading.offset);
        let is_stale = read.is_none_or(|read| read.acknowledged.is_some_and(|at| at < newest.sent));
        if is_stale {
            wrong.push(format!("{reading:?} is older than {newest:?}"));
        }
    }
    for commit in crew.commits.iter().filter(|c| c.acknowledged.is_some()) {
        let supersedes =
            |m: &&Membership| m.sent > commit.joined && m.generation != commit.generation && m.answered < commit.sent;
        if let Some(later) = crew.memberships.iter().find(supersedes) {
            wrong.push(format!("{commit:?} was taken although there was {later:?}"));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> Crew {
        let commit = |offset, sent, acknowledged, generation, joined| Commit {
            partition: 0,
            offset,
            sent,
            acknowledged,
            generation,
            joined,
        };
        let reading = |offset, sent, got| Reading { partition: 0, offset, sent, got };
        Crew {
            commits: vec![
                commit(10, 5, Some(6), 1, 4),
                commit(11, 7, None, 1, 4),
                commit(12, 20, Some(25), 2, 19),
                commit(13, 24, Some(26), 2, 18),
            ],
            readings: vec![reading(-1, 1, 2), reading(11, 8, 9), reading(12, 21, 22), reading(13, 30, 31)],
            memberships: vec![
                Membership { generation: 1, sent: 3, answered: 4 },
                Membership { generation: 2, sent: 16, answered: 19 },
                Membership { generation: 2, sent: 17, answered: 18 },
            ],
        }
    }

    #[test]
    fn a_sound_history_passes() {
        assert_eq!(check(&sound()), Vec::<String>::new());
    }

    type Damage = (&'static str, fn(&mut Crew));

    #[test]
    fn damage_is_found() {
        let damages: [Damage; 6] = [
            ("out of nowhere", |crew| crew.readings[1].offset = 99),
            ("lost", |crew| crew.readings[1].offset = -1),
            ("from the future", |crew| crew.readings[1].offset = 12),
            ("overwritten and back", |crew| crew.readings[3].offset = 10),
            ("read, and gone", |crew| crew.readings[2].offset = 10),
            ("a zombie", |crew| {
                crew.commits.push(Commit { offset: 14, sent: 40, acknowledged: Some(41), ..crew.commits[0] })
            }),
        ];
        for (what, damage) in damages {
            let mut crew = sound();
            damage(&mut crew);
            assert!(!check(&crew).is_empty(), "{what} passes");
        }
    }
}
