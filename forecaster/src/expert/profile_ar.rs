//! The typical value of the target's slot plus today's deviation from the typical, fading with the horizon.
//!
//! The deviation is taken on the square-root scale: on a busy day every hour is busier in proportion to its own
//! spread. Abstains until the slot was seen.

use super::Origin;

/// What remains of a deviation after one step.
const PERSISTENCE: f64 = 0.97;

pub(super) fn predict(origin: &Origin<'_>) -> Option<f64> {
    let (history, calendar) = (origin.history, origin.calendar);
    let (_, origin_ms) = history.series.newest()?;
    let typical = |at_ms| {
        let phase = calendar.phase(at_ms);
        history.profile.week(calendar, phase).or_else(|| history.profile.day(calendar, phase))
    };
    let at_target = typical(history.series.start_ms(origin.target))?;
    let at_origin = typical(origin_ms)?;
    let deviation = history.last_value().sqrt() - at_origin.sqrt();
    let root = at_target.sqrt() + PERSISTENCE.powi(origin.steps as i32) * deviation;
    Some(root.max(0.0).powi(2))
}
