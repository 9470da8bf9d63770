//! The first two days, in which there is little to learn from: no worse than what needs no learning.

#[path = "support/cold.rs"]
mod cold;
#[path = "support/synthetic.rs"]
mod synthetic;

/// Mean absolute error at most 1.05 times the best of last value, three EWMAs and the seasonal naive forecast. Two kinds
/// are apart, see below.
#[test]
fn a_cold_start_is_no_worse_than_a_naive_forecast() {
    let apart = ["walk_hourly", "regimes_1min", "drift_1s"];
    for kind in synthetic::KINDS.iter().filter(|kind| !apart.contains(&kind.name)) {
        // Other seeds than the example's, and than those that the guard's constants were chosen on.
        for seed in 20..28 {
            let errors = cold::first_days(kind.interval_ms, &kind.values(seed, 2 * kind.day_steps()));
            assert!(errors.ratio() <= 1.05, "{} seed {seed}: {} against {:?}", kind.name, errors.ours, errors.naive);
        }
    }
}

/// The best of five in hindsight is out of reach in two cases, which are held to what is. A random walk by the hour has
/// 48 points: at the end of the first of them it looks like a rhythm that ends where it began, and a forecaster that
/// loses no more than 5 % on a rhythm must trust the day before. Levels that jump by an order of magnitude: before
/// the first jump the mixture is the best, and how badly it takes a jump is known only after that. The mean over seeds
/// is held, and the worst.
#[test]
fn where_the_best_in_hindsight_is_out_of_reach_the_loss_is_small() {
    for (name, most_of_mean, most) in [("walk_hourly", 1.08, 1.25), ("regimes_1min", 1.04, 1.08)] {
        let kind = synthetic::KINDS.iter().find(|kind| kind.name == name).expect("it is there");
        let ratio = |seed| cold::first_days(kind.interval_ms, &kind.values(seed, 2 * kind.day_steps())).ratio();
        let ratios: Vec<f64> = (20..28).map(ratio).collect();
        let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
        assert!(mean <= most_of_mean && ratios.iter().all(|ratio| *ratio <= most), "{name}: {mean} of {ratios:?}");
    }
}

/// At one second two days are too many steps for a test; a quarter of a day is the coldest part of them.
#[test]
fn a_cold_start_by_the_second_too() {
    let kind = synthetic::KINDS.iter().find(|kind| kind.name == "drift_1s").expect("it is there");
    let errors = cold::first_days(kind.interval_ms, &kind.values(20, kind.day_steps() / 4));
    assert!(errors.ratio() <= 1.05, "{} against {:?}", errors.ours, errors.naive);
}
