//! Counts the operations of a step, in tests only.
//!
//! Purpose: "bounded time a step" as a property that does not depend on the machine. Every loop of the core whose
//! length is not a small constant says here how often it goes round; a property test holds the sum of a step to a
//! bound that is made of the configuration alone, whatever came before and whatever comes in.
//!
//! Left out: `barista2019`, which is a baseline and fitted between steps, and loops over the bytes of a state.

/// `operations` were done. Nothing outside tests.
#[inline]
pub(crate) fn count(operations: usize) {
    #[cfg(test)]
    counted::add(operations);
    #[cfg(not(test))]
    let _ = operations;
}

#[cfg(test)]
mod counted {
    use std::cell::Cell;

    thread_local! {
        static DONE: Cell<usize> = const { Cell::new(0) };
    }

    pub(super) fn add(operations: usize) {
        DONE.with(|done| done.set(done.get() + operations));
    }

    /// Those since the last call on this thread.
    pub(super) fn take() -> usize {
        DONE.with(Cell::take)
    }
}

#[cfg(test)]
mod tests {
    use super::counted::take;
    use crate::calendar::CalendarConfig;
    use crate::combine::Combiner;
    use crate::expert::{hour_ridge, ridge, trees};
    use crate::features::FEATURES;
    use crate::model::{Model, ModelConfig};
    use crate::quantile::SCALES;
    use proptest::prelude::*;

    const MINUTE_MS: u64 = 60_000;
    const START_MS: i64 = 1_700_438_400_000;

    /// Steps of a minute and a day of two hours, so that a test sees many days and refits.
    fn config() -> ModelConfig {
        let calendar = CalendarConfig::compressed(12.0, MINUTE_MS);
        let config = ModelConfig { horizons: vec![1, 2, 6, 12], calendar, ..ModelConfig::new(MINUTE_MS) };
        config.with_windows(&[1, 12])
    }

    /// What a step of learning and forecasting may take, and what a refit may.
    fn most(config: &ModelConfig) -> (usize, usize) {
        let (experts, levels) = (config.experts.len(), config.levels.len());
        let reach = config.horizons.last().map_or(0, |&steps| steps as usize);
        let ridge = 6 * FEATURES + ridge::BATCH * ridge::PACKED + FEATURES.pow(3) / 3;
        let hours = 4 * hour_ridge::PACKED + hour_ridge::SIZE.pow(3) / 3;
        let stack = 2 * experts * experts + experts.pow(3);
        let combining = 12 * experts + 4 * levels * SCALES;
        let forest = 2 * trees::MANY * trees::DEPTH + 8 * trees::N;
        // Reads of the past: features, trees, seasonal experts.
        let reading = 200;
        let horizon = ridge + hours + stack + combining + forest + reading;
        let peaks: usize = config.windows.iter().map(|&steps| 40 * levels + 2 * steps as usize).sum();
        // The gap before a sample is marked, interval by interval, up to the memory.
        let gap = 2 * (10_080 + 2);
        let step = config.horizons.len() * horizon + peaks + 4 * reach * levels + gap;
        (step, 2 * trees::ROWS * (trees::MANY * (trees::N + 3 * trees::DEPTH) + 20 * trees::N))
    }

    #[derive(Debug, Clone)]
    enum Event {
        Steps(usize, f64),
        Gap(i64),
        Late(i64, f64),
        Wild(f64),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            6 => (1_usize..200, 0.0_f64..1e4).prop_map(|(steps, size)| Event::Steps(steps, size)),
            2 => prop_oneof![1_i64..100, 100_i64..20_000, 1_000_000_i64..10_000_000].prop_map(Event::Gap),
            1 => (0_i64..100, 0.0_f64..1e6).prop_map(|(back, value)| Event::Late(back, value)),
            2 => prop_oneof![Just(0.0), Just(1e15), Just(1e-300), Just(f64::NAN), Just(-1.0), 0.0_f64..1e12].prop_map(Event::Wild),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        /// No step takes longer because of what came before it or what comes in.
        #[test]
        fn operations_of_a_step_are_bounded(warm in 0_usize..1500, events in prop::collection::vec(event(), 1..30)) {
            let config = config();
            let (most_a_step, most_a_refit) = most(&config);
            let mut model = Model::new(config).expect("the configuration is sound");
            let mut minute = 0_i64;
            let mut largest = (0, 0);
            let mut give = |minute: i64, value: f64| -> Result<(), TestCaseError> {
                take();
                model.maintain();
                let refit = take();
                // What is refused or late is bounded too.
                let _ = model.observe(START_MS + minute * MINUTE_MS as i64, value);
                std::hint::black_box(model.forecast());
                let step = take();
                prop_assert!(step <= most_a_step, "{step} operations of at most {most_a_step} at {minute}");
                prop_assert!(refit <= most_a_refit, "{refit} operations of at most {most_a_refit} at {minute}");
                largest = (largest.0.max(step), largest.1.max(refit));
                Ok(())
            };
            for event in std::iter::once(Event::Steps(warm, 50.0)).chain(events) {
                match event {
                    Event::Steps(steps, size) => {
                        for i in 0..steps {
                            give(minute, size * (1.0 + (i % 120) as f64 / 60.0))?;
                            minute += 1;
                        }
                    }
                    Event::Gap(missing) => minute += missing,
                    Event::Late(back, value) => give((minute - back).max(0), value)?,
                    Event::Wild(value) => {
                        give(minute, value)?;
                        minute += 1;
                    }
                }
            }
            if warm > 800 {
                // The bound is not empty: a step comes to a part of it, and there were refits.
                prop_assert!(10 * largest.0 > most_a_step, "{} of {most_a_step}", largest.0);
                prop_assert!(largest.1 > most_a_refit / 100, "{} of {most_a_refit}", largest.1);
            }
        }
    }

    #[test]
    fn what_is_counted_is_counted() {
        take();
        Combiner::even(7).learn([0.0; 7].into_iter());
        assert!(take() >= 7);
        assert_eq!(take(), 0);
    }
}
