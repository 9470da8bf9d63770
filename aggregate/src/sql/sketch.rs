//! A quantile sketch: a histogram with 64 linear sub-buckets in every octave, both signs.
//!
//! Purpose: quantiles of a window whose state can be merged in any order and any number of times with the same
//! result, so that a replay gives the same rows. (A t-digest is not such a state: its centroids depend on how the
//! partial digests fell.)
//!
//! Invariants: the answer is within 0.79 % of a sample whose rank is the asked one (half a sub-bucket), values
//! nearer to zero than 2⁻¹⁰ count as zero, NaN is ignored, and the answer never leaves the range of the samples: a
//! constant series gives itself. Same idea as G. Tene's HdrHistogram and DDSketch (C. Masson, J. E. Rim, H. K. Lee,
//! "DDSketch", VLDB 2019).
//!
//! A group holds 2 bytes a sample up to [`RAW_SAMPLES`], then 4 bytes a bucket of its range, at most 128 KiB.

/// log₂ of the sub-buckets of an octave.
const SUB_BUCKET_BITS: u32 = 6;
/// Bits of a double's mantissa that the bucket does not see.
const DROPPED_BITS: u32 = 52 - SUB_BUCKET_BITS;
/// Bucket number 0 begins at 2⁻¹⁰.
const BIAS: i64 = (1023 - 10) << SUB_BUCKET_BITS;
/// Highest bucket: about 2²⁴⁰.
const MAX_BUCKET: i64 = 16_000;
/// Samples kept as they come before a group becomes an array of counters.
pub const RAW_SAMPLES: usize = 192;
/// Bytes before the buckets of a serialised sketch: minimum and maximum.
const HEADER_BYTES: usize = 16;
/// Bytes of a serialised bucket: number and count.
const BUCKET_BYTES: usize = 6;
/// Counters added beyond need when the array grows, so that it does not grow at each sample.
const SLACK: usize = 32;

/// Bucket of a finite or infinite number.
fn bucket(x: f64) -> i16 {
    let magnitude = ((x.abs().to_bits() >> DROPPED_BITS) as i64 - BIAS).clamp(0, MAX_BUCKET) as i16;
    if x < 0.0 { -magnitude } else { magnitude }
}

/// Middle of a bucket.
fn midpoint(bucket: i16) -> f64 {
    if bucket == 0 {
        return 0.0;
    }
    let raw = (i64::from(bucket.unsigned_abs()) + BIAS) as u64;
    let (low, high) = (f64::from_bits(raw << DROPPED_BITS), f64::from_bits((raw + 1) << DROPPED_BITS));
    f64::from(bucket.signum()) * (low + high) / 2.0
}

#[derive(Debug, Clone)]
enum Counts {
    /// Bucket of each sample.
    Raw(Vec<i16>),
    /// Counters from bucket `base` on.
    Dense { base: i16, counters: Vec<u32> },
}

/// A sketch of one group.
#[derive(Debug, Clone)]
pub struct Sketch {
    min: f64,
    max: f64,
    counts: Counts,
}

/// Serialised bytes are not a sketch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("quantile state of {0} bytes is damaged")]
pub struct Damaged(usize);

impl Default for Sketch {
    fn default() -> Self {
        Sketch { min: f64::INFINITY, max: f64::NEG_INFINITY, counts: Counts::Raw(Vec::new()) }
    }
}

impl Sketch {
    /// Adds a sample; NaN is ignored.
    pub fn add(&mut self, x: f64) {
        if x.is_nan() {
            return;
        }
        self.min = self.min.min(x);
        self.max = self.max.max(x);
        self.count(bucket(x), 1);
    }

    /// The value at rank `round(p · (n − 1))`; `None` without samples. `p` outside 0–1 is taken as the nearer end.
    pub fn quantile(&self, p: f64) -> Option<f64> {
        let buckets = self.buckets();
        let n: u64 = buckets.iter().map(|(_, count)| u64::from(*count)).sum();
        let rank = (p.clamp(0.0, 1.0) * n.checked_sub(1)? as f64).round() as u64;
        let mut below = 0;
        let hit = buckets.iter().find(|(_, count)| {
            below += u64::from(*count);
            below > rank
        })?;
        Some(midpoint(hit.0).clamp(self.min, self.max))
    }

    /// Serialises: minimum, maximum, then (bucket, count) ascending. Equal content gives equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let buckets = self.buckets();
        let mut bytes = Vec::with_capacity(HEADER_BYTES + buckets.len() * BUCKET_BYTES);
        bytes.extend(self.min.to_le_bytes());
        bytes.extend(self.max.to_le_bytes());
        for (bucket, count) in buckets {
            bytes.extend(bucket.to_le_bytes());
            bytes.extend(count.to_le_bytes());
        }
        bytes
    }

    /// Adds a serialised sketch to this one.
    pub fn merge_bytes(&mut self, bytes: &[u8]) -> Result<(), Damaged> {
        let damaged = Damaged(bytes.len());
        let (min, rest) = bytes.split_first_chunk::<8>().ok_or(damaged)?;
        let (max, rest) = rest.split_first_chunk::<8>().ok_or(damaged)?;
        let chunks = rest.chunks_exact(BUCKET_BYTES);
        if !chunks.remainder().is_empty() {
            return Err(damaged);
        }
        self.min = self.min.min(f64::from_le_bytes(*min));
        self.max = self.max.max(f64::from_le_bytes(*max));
        for chunk in chunks {
            let bucket = i16::from_le_bytes([chunk[0], chunk[1]]);
            if i64::from(bucket).abs() > MAX_BUCKET {
                return Err(damaged);
            }
            self.count(bucket, u32::from_le_bytes([chunk[2], chunk[3], chunk[4], chunk[5]]));
        }
        Ok(())
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        match &self.counts {
            Counts::Raw(samples) => samples.capacity() * size_of::<i16>(),
            Counts::Dense { counters, .. } => counters.capacity() * size_of::<u32>(),
        }
    }

    fn count(&mut self, bucket: i16, n: u32) {
        match &mut self.counts {
            Counts::Raw(samples) if samples.len().saturating_add(n as usize) <= RAW_SAMPLES => {
                samples.resize(samples.len() + n as usize, bucket);
            }
            Counts::Raw(samples) => {
                let samples = std::mem::take(samples);
                let base = samples.iter().copied().min().unwrap_or(bucket);
                self.counts = Counts::Dense { base, counters: Vec::new() };
                samples.into_iter().for_each(|b| self.count(b, 1));
                self.count(bucket, n);
            }
            Counts::Dense { base, counters } => {
                let index = i32::from(bucket) - i32::from(*base);
                let index = if index < 0 { grow_down(base, counters, -index as usize, bucket) } else { index as usize };
                if index >= counters.len() {
                    counters.resize(index + 1 + SLACK, 0);
                }
                counters[index] = counters[index].saturating_add(n);
            }
        }
    }

    /// Non-empty buckets, ascending.
    fn buckets(&self) -> Vec<(i16, u32)> {
        match &self.counts {
            Counts::Raw(samples) => {
                let mut sorted = samples.clone();
                sorted.sort_unstable();
                sorted.chunk_by(|a, b| a == b).map(|run| (run[0], run.len() as u32)).collect()
            }
            Counts::Dense { base, counters } => (i32::from(*base)..)
                .zip(counters)
                .filter(|(_, count)| **count > 0)
                .map(|(bucket, count)| (bucket as i16, *count))
                .collect(),
        }
    }
}

/// Makes room for `missing` buckets before `base`; the index of `bucket` afterwards.
fn grow_down(base: &mut i16, counters: &mut Vec<u32>, missing: usize, bucket: i16) -> usize {
    let lowest = -(MAX_BUCKET as i32);
    let new_base = (i32::from(*base) - (missing + SLACK) as i32).max(lowest);
    let added = (i32::from(*base) - new_base) as usize;
    counters.splice(0..0, std::iter::repeat_n(0, added));
    *base = new_base as i16;
    (i32::from(bucket) - new_base) as usize
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    fn of(samples: &[f64]) -> Sketch {
        let mut sketch = Sketch::default();
        samples.iter().for_each(|x| sketch.add(*x));
        sketch
    }

    #[test]
    fn empty_and_constant_series() {
        assert_eq!(of(&[]).quantile(0.5), None);
        assert_eq!(of(&[f64::NAN]).quantile(0.5), None);
        assert_eq!(of(&[60.0; 500]).quantile(0.95), Some(60.0));
        assert_eq!(of(&[0.0, -0.0]).quantile(0.5), Some(0.0));
    }

    #[test]
    fn damaged_bytes_are_refused() {
        let beyond_the_last_bucket = [vec![0; 16], i16::MIN.to_le_bytes().to_vec(), vec![1, 0, 0, 0]].concat();
        for bytes in [&[][..], &[0; 15], &[0; 17], &beyond_the_last_bucket] {
            assert_eq!(Sketch::default().merge_bytes(bytes), Err(Damaged(bytes.len())));
        }
    }

    #[test]
    fn the_whole_range_of_doubles_fits() {
        let samples = [f64::NEG_INFINITY, f64::MIN, -1.0, 1e-300, 1.0, f64::MAX, f64::INFINITY];
        let mut many = Vec::new();
        for _ in 0..RAW_SAMPLES {
            many.extend(samples);
        }
        let sketch = of(&many);
        assert_eq!(sketch.quantile(0.0), Some(midpoint(bucket(f64::MIN))));
        assert!(sketch.heap_bytes() <= 4 * (2 * MAX_BUCKET as usize + 1 + 2 * SLACK) * 2);
    }

    fn samples() -> impl Strategy<Value = Vec<f64>> {
        prop::collection::vec(prop_oneof![-900.0..900.0f64, -1e9..1e9f64, Just(0.0)], 1..900)
    }

    proptest! {
        #[test]
        fn within_half_a_sub_bucket_of_the_exact_quantile(mut xs in samples(), p in 0.0..=1.0f64) {
            let estimate = of(&xs).quantile(p).unwrap();
            xs.sort_by(f64::total_cmp);
            let exact = xs[(p * (xs.len() - 1) as f64).round() as usize];
            prop_assert!((estimate - exact).abs() <= exact.abs() / 126.0 + 0.001, "{estimate} for {exact}");
        }

        #[test]
        fn any_split_into_partials_in_any_order_gives_the_same_bytes(
            xs in samples(), cuts in prop::collection::vec(0usize..900, 0..9), backwards in any::<bool>(),
        ) {
            let mut edges: Vec<usize> = cuts.into_iter().map(|c| c.min(xs.len())).chain([0, xs.len()]).collect();
            edges.sort_unstable();
            let mut parts: Vec<Vec<u8>> = edges.windows(2).map(|w| of(&xs[w[0]..w[1]]).to_bytes()).collect();
            if backwards { parts.reverse(); }
            let mut merged = Sketch::default();
            for part in &parts { merged.merge_bytes(part).unwrap(); }
            prop_assert_eq!(merged.to_bytes(), of(&xs).to_bytes());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            let mut sketch = Sketch::default();
            if sketch.merge_bytes(&bytes).is_ok() { let _ = sketch.to_bytes(); }
        }
    }
}
