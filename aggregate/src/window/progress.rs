//! Event time: what each partition has seen, which rows are still welcome, and how far windows may close.
//!
//! Rules, per partition:
//! - A row whose event time is more than `max_ahead_ms` after its receive time has a broken clock. It is dropped and
//!   does not move time: one such row would otherwise close every window.
//! - A row is late when its pane ended `lateness_ms` or more before the greatest event time that came *before it in
//!   its partition*, or when a window of its pane was already emitted. Late rows are dropped and counted. So a row
//!   that is out of order by at most `lateness_ms` is never late by its own partition's clock, whatever the batches;
//!   and what is late is the same again when the partition is read again.
//!
//! Over partitions: a window closes when the slowest partition for which it is still open is past its end by
//! `lateness_ms`. A partition without news for `idle_timeout_ms` (wall clock) is not waited for; if it wakes, rows of
//! windows that closed meanwhile are late. When all are idle, the fastest one counts. Partitions may stand at
//! different places (one was taken over from a slower process): a window that only some still have open is emitted
//! from those alone.

use crate::sql::window_fn::{WindowShape, floor_to};
use schemas::EpochMs;
use std::collections::BTreeMap;

/// Event times beyond ±285,000 years are no times; keeps all sums far from overflow.
const MAX_ABS_MS: i64 = 1 << 53;

/// Bounds of disorder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// How far out of order rows may be, milliseconds.
    pub lateness_ms: i64,
    /// How far a device's clock may run ahead of the receive time, milliseconds.
    pub max_ahead_ms: i64,
    /// After how long without rows a partition is not waited for, milliseconds of the wall clock.
    pub idle_timeout_ms: i64,
}

/// Why rows of a batch were dropped before grouping.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Dropped {
    pub(super) late: u64,
    pub(super) ahead: u64,
    pub(super) untimed: u64,
}

/// Rows of a batch that are welcome.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Admission {
    /// One flag a row.
    pub(super) keep: Vec<bool>,
    pub(super) dropped: Dropped,
}

impl Admission {
    pub(super) fn all(&self) -> bool {
        self.dropped == Dropped::default()
    }
}

/// Times of one row.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowTimes {
    pub(super) event_ms: Option<EpochMs>,
    pub(super) received_ms: Option<EpochMs>,
}

/// Where one partition stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    /// Greatest event time seen.
    pub(super) max_ms: Option<EpochMs>,
    /// Every window that ends at or before this was emitted with this partition's rows; a multiple of the slide.
    pub(super) closed_end_ms: EpochMs,
    /// Wall clock of the last rows, or of the assignment.
    pub(super) active_at_ms: EpochMs,
}

impl Progress {
    /// Nothing seen, nothing closed.
    pub(super) fn new(now_ms: EpochMs) -> Self {
        Progress { max_ms: None, closed_end_ms: EpochMs::MIN, active_at_ms: now_ms }
    }

    /// Judges rows in their order and moves time on.
    pub(super) fn admit(
        &mut self,
        rows: impl Iterator<Item = RowTimes>,
        shape: WindowShape,
        rules: &Rules,
    ) -> Admission {
        let mut admission = Admission::default();
        for row in rows {
            let keep = self.admit_row(row, shape, rules, &mut admission.dropped);
            admission.keep.push(keep);
        }
        admission
    }

    fn admit_row(&mut self, row: RowTimes, shape: WindowShape, rules: &Rules, dropped: &mut Dropped) -> bool {
        let Some(event_ms) = row.event_ms.filter(|ms| ms.abs() < MAX_ABS_MS) else {
            dropped.untimed += 1;
            return false;
        };
        if row.received_ms.is_some_and(|received| event_ms > received.saturating_add(rules.max_ahead_ms)) {
            dropped.ahead += 1;
            return false;
        }
        let past_ms = self.max_ms.map_or(EpochMs::MIN, |max| max - rules.lateness_ms).max(self.closed_end_ms);
        self.max_ms = self.max_ms.max(Some(event_ms));
        let pane_end_ms = shape.pane_of(event_ms) + shape.slide_ms;
        if pane_end_ms <= past_ms {
            dropped.late += 1;
            return false;
        }
        true
    }

    fn is_idle(&self, now_ms: EpochMs, rules: &Rules) -> bool {
        now_ms - self.active_at_ms >= rules.idle_timeout_ms
    }
}

/// A step of closing: `members` have emitted everything up to `closed_end_ms` once its windows are out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Closing {
    /// Partitions, ascending.
    pub(super) members: Vec<i32>,
    /// Windows that end after this …
    pub(super) after_ms: EpochMs,
    /// … and at or before this are complete.
    pub(super) until_ms: EpochMs,
}

/// The next step of closing, if anything can close. Call again after applying it.
pub(super) fn next_closing(
    partitions: &BTreeMap<i32, Progress>,
    now_ms: EpochMs,
    shape: WindowShape,
    rules: &Rules,
) -> Option<Closing> {
    let after_ms = partitions.values().map(|p| p.closed_end_ms).min()?;
    let behind = |p: &&Progress| p.closed_end_ms == after_ms;
    let next_group_ms = partitions.values().map(|p| p.closed_end_ms).filter(|end| *end > after_ms).min();
    let awake: Vec<&Progress> = partitions.values().filter(behind).filter(|p| !p.is_idle(now_ms, rules)).collect();
    let limit_of = |event_ms: EpochMs| floor_to(event_ms - rules.lateness_ms, shape.slide_ms);
    let until_ms = if awake.is_empty() {
        let fastest = partitions.values().filter_map(|p| p.max_ms).max();
        next_group_ms.or_else(|| fastest.map(limit_of))?
    } else {
        let slowest = awake.iter().map(|p| p.max_ms).collect::<Option<Vec<_>>>()?.into_iter().min()?;
        next_group_ms.unwrap_or(EpochMs::MAX).min(limit_of(slowest))
    };
    let members = partitions.iter().filter(|(_, p)| behind(p)).map(|(id, _)| *id).collect();
    (until_ms > after_ms).then_some(Closing { members, after_ms, until_ms })
}

/// The watermark: event time up to which the slowest awake partition has come. `None` while one has said nothing.
pub(super) fn watermark_ms(partitions: &BTreeMap<i32, Progress>, now_ms: EpochMs, rules: &Rules) -> Option<EpochMs> {
    let awake: Vec<&Progress> = partitions.values().filter(|p| !p.is_idle(now_ms, rules)).collect();
    if awake.is_empty() {
        return partitions.values().filter_map(|p| p.max_ms).max();
    }
    awake.iter().map(|p| p.max_ms).collect::<Option<Vec<_>>>()?.into_iter().min()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const SHAPE: WindowShape = WindowShape { slide_ms: 10, width_ms: 10 };
    const RULES: Rules = Rules { lateness_ms: 5, max_ahead_ms: 100, idle_timeout_ms: 1000 };

    fn at(event_ms: i64) -> RowTimes {
        RowTimes { event_ms: Some(event_ms), received_ms: None }
    }

    fn admitted(progress: &mut Progress, times: &[i64]) -> Vec<bool> {
        progress.admit(times.iter().map(|t| at(*t)), SHAPE, &RULES).keep
    }

    fn standing(max_ms: Option<i64>, closed_end_ms: i64, active_at_ms: i64) -> Progress {
        Progress { max_ms, closed_end_ms, active_at_ms }
    }

    fn closing(partitions: &[Progress], now_ms: i64) -> Option<Closing> {
        next_closing(&(0..).zip(partitions.iter().copied()).collect(), now_ms, SHAPE, &RULES)
    }

    #[test]
    fn late_is_judged_row_by_row_within_a_batch() {
        let mut progress = Progress::new(0);
        assert_eq!(admitted(&mut progress, &[5, 14, 9, 15, 9, 12]), [true, true, true, true, false, true]);
        let mut again = Progress::new(0);
        let one_by_one: Vec<bool> = [5, 14, 9, 15, 9, 12].iter().flat_map(|t| admitted(&mut again, &[*t])).collect();
        assert_eq!(one_by_one, [true, true, true, true, false, true], "batches do not matter");
    }

    #[test]
    fn one_far_future_timestamp_closes_nothing() {
        let mut progress = Progress::new(0);
        let rows = [(50, 50), (9_999, 60), (i64::MAX, 60), (160, 60), (55, 61)];
        let rows = rows.map(|(event, received)| RowTimes { event_ms: Some(event), received_ms: Some(received) });
        let admission = progress.admit(rows.into_iter(), SHAPE, &RULES);
        assert_eq!(admission.keep, [true, false, false, true, false]);
        assert_eq!(admission.dropped, Dropped { late: 1, ahead: 1, untimed: 1 });
        assert_eq!(progress.max_ms, Some(160));
    }

    #[test]
    fn the_slowest_partition_holds_the_windows_open_until_it_is_idle() {
        let fast = standing(Some(99), i64::MIN, 500);
        let slow = standing(Some(31), i64::MIN, 0);
        let both = |until_ms| Some(Closing { members: vec![0, 1], after_ms: i64::MIN, until_ms });
        assert_eq!(closing(&[fast, slow], 999), both(20));
        assert_eq!(closing(&[fast, slow], 1000), both(90), "the slow one is idle");
        assert_eq!(closing(&[fast, slow], 9999), both(90), "all are idle: the fastest counts");
        assert_eq!(closing(&[fast, standing(None, i64::MIN, 0)], 999), None, "one has said nothing yet");
        assert_eq!(closing(&[standing(None, i64::MIN, 0)], 9999), None);
    }

    #[test]
    fn a_partition_taken_over_from_a_slower_process_catches_up_alone() {
        let ahead = standing(Some(99), 90, 0);
        let behind = |max_ms| standing(Some(max_ms), 50, 0);
        let alone = |until_ms| Some(Closing { members: vec![1], after_ms: 50, until_ms });
        assert_eq!(closing(&[ahead, behind(56)], 0), None);
        assert_eq!(closing(&[ahead, behind(78)], 0), alone(70));
        assert_eq!(closing(&[ahead, behind(300)], 0), alone(90), "not beyond the others");
        assert_eq!(closing(&[ahead, standing(None, 50, 0)], 1000), alone(90), "idle and without a word");
    }

    #[test]
    fn the_watermark_ignores_idle_partitions() {
        let partitions = [(0, standing(Some(99), 0, 900)), (1, standing(Some(31), 0, 0))].into();
        assert_eq!(watermark_ms(&partitions, 500, &RULES), Some(31));
        assert_eq!(watermark_ms(&partitions, 1500, &RULES), Some(99));
        assert_eq!(watermark_ms(&BTreeMap::new(), 0, &RULES), None);
    }
}
