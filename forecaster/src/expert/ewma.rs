//! Exponentially weighted means of the past, flat over the horizon: the newest value with its noise averaged out.

use super::Origin;

pub(super) fn fast(origin: &Origin<'_>) -> f64 {
    origin.history.means.ewma_fast
}

pub(super) fn medium(origin: &Origin<'_>) -> f64 {
    origin.history.means.ewma_medium
}

pub(super) fn slow(origin: &Origin<'_>) -> f64 {
    origin.history.means.ewma_slow
}
