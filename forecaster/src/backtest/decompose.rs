//! The decomposition of `barista2019` alone, for a comparison with Prophet (`bench/peers/prophet_plausibility.py`).

use super::{Component, CsvSeries};
use crate::calendar::{Calendar, CalendarConfig};
use crate::expert::barista2019;

/// Fits trend and seasonality to the first `known` steps, and gives the components of these and the `ahead` next ones.
/// `None` if there are too few samples.
pub fn decompose(series: &CsvSeries, known: usize, ahead: usize, config: &CalendarConfig) -> Option<Vec<Component>> {
    let calendar = Calendar::new(config);
    let values = series.values.iter().take(known).enumerate();
    let samples = values.filter_map(|(index, value)| Some((series.start_ms(index), (*value)?)));
    barista2019::decompose(&calendar, samples, (0..known + ahead).map(|index| series.start_ms(index)))
}
