//! Puts the rows of a batch in order of their panes.
//!
//! Invariant: rows of one pane keep their order, whichever way is taken. Three ways: nothing to do (already in
//! order), a counting sort (few panes, the usual case), a stable sort (event times spread over very many panes).

use arrow::array::UInt32Array;

/// Panes between the first and the last of a batch up to which rows are counted rather than sorted.
const COUNTING_LIMIT: i64 = 4096;

/// A stretch of rows of one pane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// Start of the pane.
    pub(super) pane_ms: i64,
    /// First row, after reordering.
    pub(super) offset: usize,
    /// Number of rows.
    pub(super) length: usize,
}

/// How to reorder a batch, and its runs afterwards.
#[derive(Debug, PartialEq)]
pub(super) struct Assignment {
    /// Row numbers in the new order; `None` when the order stays.
    pub(super) order: Option<UInt32Array>,
    /// Ascending by pane; covers every row.
    pub(super) runs: Vec<Run>,
}

/// Assigns rows with pane starts `panes`, multiples of `slide_ms`.
pub(super) fn assign(panes: &[i64], slide_ms: i64) -> Assignment {
    if panes.is_sorted() {
        return Assignment { order: None, runs: runs(panes) };
    }
    let order = counted_order(panes, slide_ms).unwrap_or_else(|| sorted_order(panes));
    let reordered: Vec<i64> = order.iter().map(|&row| panes[row as usize]).collect();
    Assignment { order: Some(UInt32Array::from(order)), runs: runs(&reordered) }
}

fn runs(panes: &[i64]) -> Vec<Run> {
    let mut offset = 0;
    panes
        .chunk_by(|a, b| a == b)
        .map(|chunk| {
            let run = Run { pane_ms: chunk[0], offset, length: chunk.len() };
            offset += chunk.len();
            run
        })
        .collect()
}

fn counted_order(panes: &[i64], slide_ms: i64) -> Option<Vec<u32>> {
    let (first, last) = (*panes.iter().min()?, *panes.iter().max()?);
    let slots = last.checked_sub(first)? / slide_ms + 1;
    if slots > COUNTING_LIMIT {
        return None;
    }
    let slot = |pane: i64| ((pane - first) / slide_ms) as usize;
    let mut next = vec![0u32; slots as usize + 1];
    for &pane in panes {
        next[slot(pane) + 1] += 1;
    }
    for i in 1..next.len() {
        next[i] += next[i - 1];
    }
    let mut order = vec![0u32; panes.len()];
    for (row, &pane) in panes.iter().enumerate() {
        let place = &mut next[slot(pane)];
        order[*place as usize] = row as u32;
        *place += 1;
    }
    Some(order)
}

fn sorted_order(panes: &[i64]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..panes.len() as u32).collect();
    order.sort_by_key(|&row| panes[row as usize]);
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rows_in_order_are_not_touched() {
        let assignment = assign(&[0, 0, 10, 30], 10);
        assert_eq!(assignment.order, None);
        assert_eq!(assignment.runs.len(), 3);
        assert_eq!(assignment.runs[2], Run { pane_ms: 30, offset: 3, length: 1 });
        assert_eq!(assign(&[], 10), Assignment { order: None, runs: vec![] });
    }

    #[test]
    fn a_spread_over_very_many_panes_is_sorted() {
        let far = COUNTING_LIMIT * 1000;
        assert_eq!(counted_order(&[far, 0], 10), None);
        let assignment = assign(&[far, 0, far, i64::MAX - 7, i64::MIN], 10);
        assert_eq!(assignment.order, Some(UInt32Array::from(vec![4, 1, 0, 2, 3])));
    }

    proptest! {
        #[test]
        fn both_ways_agree_and_are_stable(panes in prop::collection::vec(-50i64..50, 1..200)) {
            let panes: Vec<i64> = panes.into_iter().map(|p| p * 10).collect();
            let counted = counted_order(&panes, 10).unwrap_or_default();
            prop_assert_eq!(&counted, &sorted_order(&panes));
            let stable = counted.windows(2).all(|w| {
                let (a, b) = (panes[w[0] as usize], panes[w[1] as usize]);
                a < b || (a == b && w[0] < w[1])
            });
            prop_assert!(stable);
            prop_assert_eq!(assign(&panes, 10).runs.iter().map(|r| r.length).sum::<usize>(), panes.len());
        }
    }
}
