//! Idle worker permits for background work. Pure.
//!
//! Purpose: decide which instance gets how many of the node's free permits for requests of `prediction.batch.<service>`
//! and of `priority = "batch"`.
//!
//! Invariants:
//! - Never more than the free permits together, never more than an instance can use.
//! - No instance gets a second permit while another that wants one has none less.
//! - What is lent is in no book: plan and vertical scaling count those permits as free and take them back with their
//!   next step; the worker then ends after the inference that it runs.

/// Permits lent to each instance that wants some: `wants[i]` is how many it could use.
pub fn lend(free: u32, wants: &[u32]) -> Vec<u32> {
    let mut lent = vec![0; wants.len()];
    let mut left = free;
    while left > 0 {
        let before = left;
        for (lent, want) in lent.iter_mut().zip(wants) {
            if left > 0 && *lent < *want {
                *lent += 1;
                left -= 1;
            }
        }
        if left == before {
            break;
        }
    }
    lent
}

/// Workers that could run `rows` at once in batches of `max_batch`.
pub fn wanted(rows: u64, max_batch: u32) -> u32 {
    u32::try_from(rows.div_ceil(u64::from(max_batch.max(1)))).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn permits_go_round() {
        assert_eq!(lend(5, &[9, 1, 9]), [2, 1, 2]);
        assert_eq!(lend(0, &[3]), [0]);
        assert_eq!(lend(3, &[]), Vec::<u32>::new());
        assert_eq!((wanted(0, 4), wanted(1, 4), wanted(9, 4), wanted(3, 0)), (0, 1, 3, 3));
    }

    proptest! {
        #[test]
        fn all_that_is_free_is_lent_fairly_and_no_more(
            free in 0u32..40, wants in proptest::collection::vec(0u32..20, 0..6),
        ) {
            let lent = lend(free, &wants);
            let total: u32 = lent.iter().sum();
            prop_assert_eq!(total, free.min(wants.iter().sum()));
            for (i, &has) in lent.iter().enumerate() {
                prop_assert!(has <= wants[i]);
                let shorted = lent.iter().zip(&wants).any(|(other, want)| other < want && has > other + 1);
                prop_assert!(!shorted, "{:?} of {:?}", lent, wants);
            }
        }
    }
}
