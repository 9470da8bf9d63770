//! How a batch is cut into runs of the plans that exist. Pure.
//!
//! An engine has one compiled plan for each of a few batch sizes, with a measured time each. A batch of any length is
//! served by the cheapest series of runs; the last one may be padded. Where batching does not pay (2D convolutions)
//! the cheapest series is single rows, which this finds by itself.

/// The cheapest cuts for any number of rows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Cuts {
    /// Index of the first plan to run for `n` rows, at `n - 1`.
    first: Vec<usize>,
    /// Batch size of each plan.
    sizes: Vec<usize>,
    /// Plan with the lowest time per row, for what is longer than the table.
    bulk: usize,
}

impl Cuts {
    /// From plans given as (batch size, time of a run in any unit). `None` when a size is 0 or the list is empty.
    pub(crate) fn new(plans: &[(usize, f64)]) -> Option<Self> {
        if plans.is_empty() || plans.iter().any(|(size, _)| *size == 0) {
            return None;
        }
        let per_row = |&(size, time): &(usize, f64)| time / size as f64;
        let bulk = (0..plans.len()).min_by(|&a, &b| per_row(&plans[a]).total_cmp(&per_row(&plans[b])))?;
        // Twice the largest plan: beyond that, taking the plan of the lowest time per row first costs next to nothing.
        let table = 2 * plans.iter().map(|(size, _)| *size).max()?;
        let mut best = vec![0.0];
        let mut first = Vec::with_capacity(table);
        for rows in 1..=table {
            let time = |i: usize| plans[i].1 + best[rows.saturating_sub(plans[i].0)];
            let cheapest = (0..plans.len()).min_by(|&a, &b| time(a).total_cmp(&time(b)))?;
            best.push(time(cheapest));
            first.push(cheapest);
        }
        Some(Cuts { first, sizes: plans.iter().map(|(size, _)| *size).collect(), bulk })
    }

    /// Runs for `rows` rows: (index of the plan, rows in it), in order; the last one may hold fewer than its size.
    pub(crate) fn runs(&self, rows: usize) -> Vec<(usize, usize)> {
        let mut left = rows;
        let mut runs = Vec::new();
        while left > 0 {
            let plan = if left > self.first.len() { self.bulk } else { self.first[left - 1] };
            let taken = self.sizes[plan].min(left);
            runs.push((plan, taken));
            left -= taken;
        }
        runs
    }

    /// True when some number of rows up to `rows` is served with this plan.
    pub(crate) fn uses(&self, plan: usize, rows: usize) -> bool {
        (1..=rows).any(|n| self.runs(n).iter().any(|(p, _)| *p == plan))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_convolution_is_served_row_by_row() {
        let cuts = Cuts::new(&[(1, 0.93), (4, 5.56), (8, 12.8)]).unwrap();
        assert_eq!(cuts.runs(5), vec![(0, 1); 5]);
        assert!(!cuts.uses(1, 8) && !cuts.uses(2, 8));
    }

    #[test]
    fn a_perceptron_is_padded() {
        let cuts = Cuts::new(&[(1, 5.0), (4, 4.0), (16, 8.0)]).unwrap();
        assert_eq!(cuts.runs(3), vec![(1, 3)]);
        assert_eq!(cuts.runs(9), vec![(2, 9)]);
    }

    #[test]
    fn a_recurrent_net_is_cut_without_waste() {
        let cuts = Cuts::new(&[(1, 65.0), (4, 144.0), (8, 336.0), (16, 640.0)]).unwrap();
        let runs = cuts.runs(9);
        assert_eq!(runs.iter().map(|(_, rows)| rows).sum::<usize>(), 9);
        let time: f64 = runs.iter().map(|(p, _)| [65.0, 144.0, 336.0, 640.0][*p]).sum();
        assert!(time <= 144.0 * 2.0 + 65.0, "{runs:?}");
    }

    proptest! {
        #[test]
        fn every_row_is_run_once_and_no_single_plan_is_cheaper(
            plans in proptest::collection::vec((1usize..20, 0.1f64..50.0), 1..5), rows in 1usize..60,
        ) {
            let cuts = Cuts::new(&plans).unwrap();
            let runs = cuts.runs(rows);
            prop_assert_eq!(runs.iter().map(|(_, n)| n).sum::<usize>(), rows);
            prop_assert!(runs.iter().all(|(p, n)| *n >= 1 && *n <= plans[*p].0));
            if rows <= 2 * plans.iter().map(|p| p.0).max().unwrap() {
                let time: f64 = runs.iter().map(|(p, _)| plans[*p].1).sum();
                for (size, one) in &plans {
                    prop_assert!(time <= one * rows.div_ceil(*size) as f64 + 1e-9);
                }
            }
        }
    }
}
