//! The value one season before the target. Abstains until it has one.

use super::Origin;

/// One day before.
pub(super) fn day(origin: &Origin<'_>) -> Option<f64> {
    before(origin, origin.seasons.day_steps)
}

/// One week before.
pub(super) fn week(origin: &Origin<'_>) -> Option<f64> {
    before(origin, origin.seasons.week_steps)
}

fn before(origin: &Origin<'_>, season_steps: u64) -> Option<f64> {
    // A horizon longer than the season looks back by as many seasons as make it the past.
    let seasons = u64::from(origin.steps).div_ceil(season_steps.max(1)).max(1);
    origin.history.series.at(origin.target - (seasons * season_steps) as i64)
}
