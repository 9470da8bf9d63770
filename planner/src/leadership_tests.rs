//! Leadership against a model of the log: a transactional id with one newest writer, records in one order.

use super::*;
use proptest::prelude::*;

/// What a planner has written, in order.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Entry {
    planner: usize,
    epoch: u64,
    at_ms: i64,
}

/// A planner and its shell, which carries actions out with delays.
#[derive(Debug, Clone)]
struct Planner {
    state: Leadership,
    /// Number of its writer; fenced when the log has a newer one.
    writer: u64,
    /// Not run until then: paused, as by SIGSTOP.
    paused_until_ms: i64,
    dead: bool,
    /// Log position read so far.
    read: usize,
    /// What it waits for, and when that is done.
    pending: Option<(i64, Pending)>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Pending {
    /// The id is ours at the end of the wait.
    Fence,
    /// The topic is read to its end.
    Read,
    /// A transaction with this epoch, begun then.
    Commit { epoch: u64, begun_ms: i64 },
}

#[derive(Debug, Default)]
struct World {
    log: Vec<Entry>,
    newest_writer: u64,
    now_ms: i64,
    planners: Vec<Planner>,
    /// Delay of every request and of reading.
    delay_ms: i64,
}

impl World {
    fn new(n: usize, seed: u64, delay_ms: i64) -> Self {
        let planner = |i: usize| Planner {
            state: Leadership::new(Found::Nobody, seed ^ (i as u64) << 32, 0),
            writer: 0,
            paused_until_ms: 0,
            dead: false,
            read: 0,
            pending: None,
        };
        World { planners: (0..n).map(planner).collect(), delay_ms, ..World::default() }
    }

    fn tell(&mut self, i: usize, event: Event) {
        let (state, actions) = step(self.planners[i].state, self.now_ms, event);
        self.planners[i].state = state;
        for action in actions {
            let done_ms = self.now_ms + self.delay_ms;
            let p = &mut self.planners[i];
            match action {
                Action::Claim => p.pending = Some((done_ms, Pending::Fence)),
                Action::Announce { epoch } => {
                    p.pending.get_or_insert((done_ms, Pending::Commit { epoch, begun_ms: self.now_ms }));
                }
                Action::Lead { epoch } => {
                    p.pending = Some((done_ms, Pending::Commit { epoch, begun_ms: self.now_ms }));
                }
                Action::Beat => {
                    let Role::Active { epoch, .. } = p.state.role() else { unreachable!("only the active one beats") };
                    p.pending.get_or_insert((done_ms, Pending::Commit { epoch, begun_ms: self.now_ms }));
                }
                Action::StepDown => p.pending = None,
            }
        }
    }

    /// One millisecond of every planner that runs.
    fn tick(&mut self) {
        self.now_ms += 1;
        for i in 0..self.planners.len() {
            let p = &self.planners[i];
            if p.dead || p.paused_until_ms > self.now_ms {
                continue;
            }
            self.deliver(i);
            self.finish(i);
            if self.now_ms >= self.planners[i].state.wake_at_ms() && self.planners[i].pending.is_none() {
                self.tell(i, Event::Tick);
            }
        }
    }

    /// Records become readable after the delay; a claim reads for itself.
    fn deliver(&mut self, i: usize) {
        while let Some(entry) = self.log.get(self.planners[i].read).copied() {
            if entry.at_ms + self.delay_ms > self.now_ms {
                return;
            }
            self.planners[i].read += 1;
            self.tell(i, Event::Heard { epoch: entry.epoch, resigned: false });
        }
    }

    fn finish(&mut self, i: usize) {
        let Some((at_ms, pending)) = self.planners[i].pending else { return };
        if at_ms > self.now_ms {
            return;
        }
        self.planners[i].pending = None;
        match pending {
            Pending::Fence => {
                self.newest_writer += 1;
                self.planners[i].writer = self.newest_writer;
                self.planners[i].pending = Some((self.now_ms + self.delay_ms, Pending::Read));
            }
            Pending::Read => {
                let highest_epoch = self.log.iter().map(|e| e.epoch).max().unwrap_or(0);
                let unheard = self.planners[i].read < self.log.len();
                self.planners[i].read = self.log.len();
                self.tell(i, Event::Claimed { highest_epoch, unheard });
            }
            Pending::Commit { .. } if self.planners[i].writer != self.newest_writer => self.tell(i, Event::Lost),
            Pending::Commit { epoch, begun_ms } => {
                self.log.push(Entry { planner: i, epoch, at_ms: self.now_ms });
                self.tell(i, Event::Committed { begun_ms });
            }
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        for pair in self.log.windows(2) {
            prop_assert!(pair[0].epoch <= pair[1].epoch, "an epoch falls: {pair:?}");
            prop_assert!(
                pair[0].epoch < pair[1].epoch || pair[0].planner == pair[1].planner,
                "two planners in one epoch: {pair:?}"
            );
        }
        Ok(())
    }

    /// Who may act now. One that is paused may not: it looks at the clock before it acts.
    fn acting(&self) -> usize {
        let runs = |p: &&Planner| !p.dead && p.paused_until_ms <= self.now_ms;
        self.planners.iter().filter(runs).filter(|p| p.state.may_act(self.now_ms)).count()
    }
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    Kill(usize),
    Pause(usize, i64),
    Run(i64),
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        (0..3usize).prop_map(Fault::Kill),
        (0..3usize, 100..9_000i64).prop_map(|(i, ms)| Fault::Pause(i, ms)),
        (10..6_000i64).prop_map(Fault::Run),
        (10..6_000i64).prop_map(Fault::Run),
    ]
}

/// Plays the faults to three planners; one of them acts at a time, and somebody leads in the end.
fn play(seed: u64, delay_ms: i64, faults: Vec<Fault>) -> Result<(), TestCaseError> {
    let mut world = World::new(3, seed, delay_ms);
    for fault in faults {
        let run_ms = match fault {
            // The last one lives.
            Fault::Kill(i) if world.planners.iter().filter(|p| !p.dead).count() > 1 => {
                world.planners[i].dead = true;
                0
            }
            Fault::Kill(_) => 0,
            Fault::Pause(i, ms) => {
                world.planners[i].paused_until_ms = world.now_ms + ms;
                0
            }
            Fault::Run(ms) => ms,
        };
        for _ in 0..run_ms {
            world.tick();
            prop_assert!(world.acting() <= 1, "two act at {} ms: {:?}", world.now_ms, world.planners);
        }
        world.check()?;
    }
    // Somebody leads in the end.
    let before = world.log.len();
    for _ in 0..40_000 {
        world.tick();
    }
    world.check()?;
    prop_assert!(world.log.len() > before + 20, "nobody leads");
    prop_assert_eq!(world.acting(), 1);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_dies_or_stalls_one_plans_at_a_time(
        seed in any::<u64>(), delay_ms in 1..300i64, faults in proptest::collection::vec(fault(), 0..12)
    ) {
        play(seed, delay_ms, faults)?;
    }

    #[test]
    fn a_dead_planner_is_succeeded_in_time(seed in any::<u64>(), n in 2..6usize, delay_ms in 1..300i64, life_ms in 4_000..9_000i64) {
        let mut world = World::new(n, seed, delay_ms);
        for _ in 0..life_ms {
            world.tick();
        }
        let last = *world.log.last().expect("somebody leads");
        world.planners[last.planner].dead = true;
        let written = world.log.len();
        while world.log.len() == written && world.now_ms < life_ms + 20_000 {
            world.tick();
        }
        let next = world.log[written];
        prop_assert!(next.epoch > last.epoch);
        // Heard, silence, a moment of its own, then fence, read and commit.
        let bound_ms = SILENCE_MS + JITTER_MS + 5 * delay_ms + 5;
        prop_assert!(next.at_ms - last.at_ms <= bound_ms, "after {} ms, delay {delay_ms}", next.at_ms - last.at_ms);
    }

    #[test]
    fn lost_claims_wait_longer_but_not_for_ever(seed in any::<u64>()) {
        let mut state = Leadership::new(Found::Nobody, seed, 0);
        let mut now_ms = 0;
        for _ in 0..40 {
            let (claiming, actions) = step(state, now_ms, Event::Tick);
            prop_assert_eq!(actions, vec![Action::Claim]);
            let (lost, actions) = step(claiming, now_ms, Event::Lost);
            prop_assert_eq!(actions, vec![Action::StepDown]);
            let Role::Standby { claim_at_ms } = lost.role() else { panic!("{lost:?}") };
            prop_assert!((SILENCE_MS..=SILENCE_MS + BACK_OFF_MOST_MS).contains(&(claim_at_ms - now_ms)));
            // It looks often, so it is not deaf.
            state = lost;
            while now_ms < claim_at_ms {
                now_ms = state.wake_at_ms();
                if now_ms < claim_at_ms {
                    state = step(state, now_ms, Event::Tick).0;
                }
            }
        }
    }
}

/// A claimer that waited in silence was claimed against by the third, which then waited in silence, and so on.
#[test]
fn one_that_waits_to_lead_shows_itself() {
    let faults = vec![Fault::Run(1132), Fault::Run(754), Fault::Pause(2, 2914)];
    play(5_289_204_789_951_873_825, 295, faults).expect("one leads");
}

#[test]
fn an_active_planner_that_hears_a_higher_epoch_steps_down() {
    let state = Leadership::new(Found::Nobody, 1, 0);
    let (state, actions) = step(state, 0, Event::Tick);
    assert_eq!(actions, [Action::Claim]);
    let (state, actions) = step(state, 10, Event::Claimed { highest_epoch: 4, unheard: false });
    assert_eq!(actions, [Action::Lead { epoch: 5 }]);
    assert!(!state.may_act(11), "nothing is committed yet");
    let (state, _) = step(state, 20, Event::Committed { begun_ms: 12 });
    assert!(state.may_act(12 + SILENCE_MS - 1) && !state.may_act(12 + SILENCE_MS));
    let (state, actions) = step(state, 30, Event::Heard { epoch: 5, resigned: false });
    assert_eq!(actions, [], "its own record");
    let (state, actions) = step(state, 40, Event::Heard { epoch: 6, resigned: false });
    assert_eq!(actions, [Action::StepDown]);
    assert!(!state.may_act(41));
}

#[test]
fn after_a_resignation_nobody_waits_for_silence() {
    let state = Leadership::new(Found::Somebody, 3, 0);
    assert!(matches!(state.role(), Role::Standby { claim_at_ms } if claim_at_ms >= SILENCE_MS));
    let (state, _) = step(state, 100, Event::Heard { epoch: 2, resigned: true });
    assert!(matches!(state.role(), Role::Standby { claim_at_ms } if claim_at_ms <= 100 + JITTER_MS));
}

#[test]
fn a_process_that_was_stopped_listens_before_it_claims() {
    let state = Leadership::new(Found::Somebody, 3, 0);
    let (state, actions) = step(state, 60_000, Event::Tick);
    assert_eq!(actions, [], "it has not listened for a minute");
    assert!(matches!(state.role(), Role::Standby { claim_at_ms } if claim_at_ms >= 63_000));
}
