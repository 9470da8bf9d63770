//! Fits families of distributions to measured latencies, and says how far each is to be trusted. Pure.
//!
//! Source: Barista (IC2E 2019) plans with the 95th percentile of the distribution that the Kolmogorov–Smirnov statistic
//! picks. Estimates: moments (normal, log-normal, log-logistic, shifted exponential), Minka's approximation of the
//! maximum likelihood (gamma, "Estimating a Gamma distribution", 2002), maximum likelihood by bisection (Weibull).
//!
//! Invariants:
//! - Samples that are not positive and finite are left out; without a usable one there is no fit.
//! - A family that fits is used only if the samples do not contradict it: its statistic is at most the 5 % bound of
//!   Kolmogorov's distribution, `1.358 / √n`. With parameters taken from the same samples that bound is lenient, so
//!   the samples speak against a family before a stricter test (Lilliefors) would. Otherwise the measured percentile
//!   stands, which needs no family to be right.

use schemas::profile::{LatencyDistribution, LatencyFit, LatencyQuantile};
use statrs::distribution::{ContinuousCDF, Gamma, LogNormal, Normal, Weibull};

/// Levels of the quantiles that are kept.
const LEVELS: [f64; 11] = [0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975, 0.99, 0.999];
/// Level that is planned with.
const PLANNED: f64 = 0.95;
/// Two-sided 5 % bound of Kolmogorov's distribution times √n, for n beyond about 35 (Smirnov 1948).
const KOLMOGOROV_5: f64 = 1.358;
/// Half the width of a 95 % interval in standard deviations of the normal distribution.
const NORMAL_95: f64 = 1.96;
/// Fewer samples than this fit anything: no family is used.
const MIN_SAMPLES: usize = 30;

/// How the times (milliseconds) of a point are distributed; `None` without a usable sample.
pub fn describe(workers: u32, batch: u32, times_ms: &[f64]) -> Option<LatencyDistribution> {
    let mut sorted: Vec<f64> = times_ms.iter().copied().filter(|t| t.is_finite() && *t > 0.0).collect();
    sorted.sort_by(f64::total_cmp);
    if sorted.is_empty() {
        return None;
    }
    let fits = fit_all(&sorted);
    let measured = quantile(&sorted, PLANNED);
    let bound = KOLMOGOROV_5 / (sorted.len() as f64).sqrt();
    let best = fits.first().filter(|fit| sorted.len() >= MIN_SAMPLES && fit.ks <= bound);
    let (planned_p95_ms, planned_by) =
        best.map_or((measured, "measured".to_owned()), |fit| (fit.p95_ms, fit.family.clone()));
    Some(LatencyDistribution {
        workers,
        batch,
        samples: sorted.len() as u64,
        quantiles: LEVELS.iter().map(|&level| LatencyQuantile { level, ms: quantile(&sorted, level) }).collect(),
        p95_interval_ms: interval(&sorted, PLANNED),
        fits,
        planned_p95_ms,
        planned_by,
    })
}

/// The smallest sample that at least `level` of them do not exceed.
fn quantile(sorted: &[f64], level: f64) -> f64 {
    let rank = (level * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// Order statistics around a quantile that hold it with 95 % confidence: ranks from the normal approximation of the
/// binomial number of samples below it (Conover, Practical Nonparametric Statistics, 3.2).
pub(crate) fn interval(sorted: &[f64], level: f64) -> [f64; 2] {
    let n = sorted.len() as f64;
    let half = NORMAL_95 * (n * level * (1.0 - level)).sqrt();
    let at = |rank: f64| sorted[(rank.max(1.0) as usize).min(sorted.len()) - 1];
    [at((n * level - half).floor()), at((n * level + half).ceil() + 1.0)]
}

/// A fitted family before it is compared.
struct Candidate {
    family: &'static str,
    parameters: Vec<f64>,
    cdf: Box<dyn Fn(f64) -> f64>,
    p95_ms: f64,
}

impl Candidate {
    fn of<D: ContinuousCDF<f64, f64> + 'static>(family: &'static str, parameters: Vec<f64>, of: D) -> Self {
        let p95_ms = of.inverse_cdf(PLANNED);
        Candidate { family, parameters, cdf: Box::new(move |x| of.cdf(x)), p95_ms }
    }
}

/// Every family that can be fitted, the smallest statistic first.
fn fit_all(sorted: &[f64]) -> Vec<LatencyFit> {
    let logs: Vec<f64> = sorted.iter().map(|t| t.ln()).collect();
    let (mean, sd) = moments(sorted);
    let (log_mean, log_sd) = moments(&logs);
    // Equal samples have no width to fit; the measured quantile says all.
    if !(sd > 0.0 && log_sd > 0.0) {
        return Vec::new();
    }
    let gamma = || {
        let spread = mean.ln() - log_mean;
        let shape = (3.0 - spread + ((spread - 3.0).powi(2) + 24.0 * spread).sqrt()) / (12.0 * spread);
        Some(Candidate::of("gamma", vec![shape, mean / shape], Gamma::new(shape, shape / mean).ok()?))
    };
    let weibull = || {
        let (shape, scale) = weibull_parameters(sorted, &logs)?;
        Some(Candidate::of("weibull", vec![shape, scale], Weibull::new(shape, scale).ok()?))
    };
    let candidates = [
        Normal::new(mean, sd).ok().map(|d| Candidate::of("normal", vec![mean, sd], d)),
        LogNormal::new(log_mean, log_sd).ok().map(|d| Candidate::of("log-normal", vec![log_mean, log_sd], d)),
        gamma(),
        weibull(),
        Some(log_logistic(log_mean, log_sd)),
        Some(shifted_exponential(sorted[0], mean)),
    ];
    let mut fits: Vec<LatencyFit> = candidates
        .into_iter()
        .flatten()
        .filter(|c| c.p95_ms.is_finite() && c.p95_ms > 0.0)
        .map(|c| LatencyFit {
            family: c.family.to_owned(),
            ks: ks(sorted, &c.cdf),
            parameters: c.parameters,
            p95_ms: c.p95_ms,
        })
        .filter(|fit| fit.ks.is_finite())
        .collect();
    fits.sort_by(|a, b| a.ks.total_cmp(&b.ks));
    fits
}

/// The logarithm is logistic: `F(x) = 1 / (1 + (x/α)^−β)`.
fn log_logistic(log_mean: f64, log_sd: f64) -> Candidate {
    let (alpha, beta) = (log_mean.exp(), std::f64::consts::PI / (3f64.sqrt() * log_sd));
    Candidate {
        family: "log-logistic",
        parameters: vec![alpha, beta],
        cdf: Box::new(move |x| 1.0 / (1.0 + (x / alpha).powf(-beta))),
        p95_ms: alpha * (PLANNED / (1.0 - PLANNED)).powf(1.0 / beta),
    }
}

/// A least time and an exponential excess: `F(x) = 1 − exp(−(x − shift)/excess)`.
fn shifted_exponential(least: f64, mean: f64) -> Candidate {
    let excess = (mean - least).max(f64::MIN_POSITIVE);
    Candidate {
        family: "shifted-exponential",
        parameters: vec![least, excess],
        cdf: Box::new(move |x| 1.0 - (-(x - least).max(0.0) / excess).exp()),
        p95_ms: least - excess * (1.0 - PLANNED).ln(),
    }
}

/// Shape and scale of largest likelihood: the shape is the root of a rising function, found by bisection.
fn weibull_parameters(sorted: &[f64], logs: &[f64]) -> Option<(f64, f64)> {
    let log_mean = logs.iter().sum::<f64>() / logs.len() as f64;
    // Relative to the largest, so that no power overflows.
    let largest = *sorted.last()?;
    let weights = |shape: f64| logs.iter().map(move |l| (shape * (l - largest.ln())).exp());
    let score = |shape: f64| {
        let (sum, weighted) = weights(shape).zip(logs).fold((0.0, 0.0), |(s, w), (x, l)| (s + x, w + x * l));
        weighted / sum - 1.0 / shape - log_mean
    };
    let (mut low, mut high) = (1e-3, 1e5);
    if !(score(low) < 0.0 && score(high) > 0.0) {
        return None;
    }
    for _ in 0..200 {
        let middle = (low * high).sqrt();
        if score(middle) < 0.0 { low = middle } else { high = middle }
    }
    let mean_power = weights(low).sum::<f64>() / logs.len() as f64;
    Some((low, largest * mean_power.powf(1.0 / low)))
}

/// Mean and standard deviation.
fn moments(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (mean, (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt())
}

/// Kolmogorov–Smirnov statistic of sorted samples against a distribution function.
fn ks(sorted: &[f64], cdf: &dyn Fn(f64) -> f64) -> f64 {
    let n = sorted.len() as f64;
    let distance = |(i, x): (usize, &f64)| {
        let f = cdf(*x);
        (f - i as f64 / n).abs().max(((i + 1) as f64 / n - f).abs())
    };
    sorted.iter().enumerate().map(distance).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    /// Samples at evenly spread levels of an inverse distribution function: the distribution itself, without noise.
    fn spread(n: usize, inverse: impl Fn(f64) -> f64) -> Vec<f64> {
        (0..n).map(|i| inverse((i as f64 + 0.5) / n as f64)).collect()
    }

    fn best(times: &[f64]) -> (String, LatencyDistribution) {
        let described = describe(1, 1, times).unwrap();
        (described.planned_by.clone(), described)
    }

    #[test]
    fn each_family_finds_itself_with_its_parameters() {
        let normal = Normal::new(20.0, 2.0).unwrap();
        let log_normal = LogNormal::new(1.0, 0.6).unwrap();
        let gamma = Gamma::new(3.0, 0.5).unwrap();
        let weibull = Weibull::new(0.8, 5.0).unwrap();
        type Case<'a> = (&'a str, Box<dyn Fn(f64) -> f64 + 'a>, [f64; 2]);
        let cases: Vec<Case<'_>> = vec![
            ("normal", Box::new(|u| normal.inverse_cdf(u)), [20.0, 2.0]),
            ("log-normal", Box::new(|u| log_normal.inverse_cdf(u)), [1.0, 0.6]),
            ("gamma", Box::new(|u| gamma.inverse_cdf(u)), [3.0, 2.0]),
            ("weibull", Box::new(|u| weibull.inverse_cdf(u)), [0.8, 5.0]),
            ("log-logistic", Box::new(|u| 4.0 * (u / (1.0 - u)).powf(0.2)), [4.0, 5.0]),
            ("shifted-exponential", Box::new(|u| 7.0 - 1.5 * (1.0 - u).ln()), [7.0, 1.5]),
        ];
        for (family, inverse, parameters) in cases {
            let times = spread(2_000, &inverse);
            let (found, described) = best(&times);
            assert_eq!(found, family, "{:?}", described.fits);
            let fit = &described.fits[0];
            for (got, expected) in fit.parameters.iter().zip(parameters) {
                assert!((got / expected - 1.0).abs() < 0.03, "{family}: {:?} for {parameters:?}", fit.parameters);
            }
            assert!((described.planned_p95_ms / inverse(0.95) - 1.0).abs() < 0.03, "{family}");
        }
    }

    #[test]
    fn two_clusters_are_no_family_and_the_measured_percentile_stands() {
        let times: Vec<f64> = (0..1000).map(|i| if i % 4 == 0 { 50.0 } else { 5.0 } + (i % 7) as f64 * 0.01).collect();
        let (by, described) = best(&times);
        assert_eq!(by, "measured");
        assert!((50.0..50.1).contains(&described.planned_p95_ms), "{}", described.planned_p95_ms);
        assert!(!described.fits.is_empty(), "what was tried is told");
    }

    #[test]
    fn few_or_equal_samples_are_not_believed() {
        let (by, described) = best(&spread(20, |u| 1.0 + u));
        assert_eq!(by, "measured");
        assert_eq!(described.p95_interval_ms[1], 1.975, "the largest sample: nothing above it was seen");
        let (by, described) = best(&[3.0; 500]);
        assert_eq!((by.as_str(), described.planned_p95_ms, described.fits.len()), ("measured", 3.0, 0));
        assert_eq!(describe(1, 1, &[f64::NAN, -1.0, 0.0]), None);
    }

    #[test]
    fn the_interval_holds_the_percentile_as_often_as_it_says() {
        use rand::{Rng, SeedableRng};
        let seed = 7;
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let held = (0..1000).filter(|_| {
            let mut times: Vec<f64> = (0..400).map(|_| -(1.0 - random.random::<f64>()).ln()).collect();
            times.sort_by(f64::total_cmp);
            let [low, high] = interval(&times, 0.95);
            (low..=high).contains(&20f64.ln())
        });
        let held = held.count();
        assert!((930..=985).contains(&held), "{held} of 1000 intervals hold it, seed {seed}");
    }

    proptest! {
        #[test]
        fn whatever_is_measured_is_described_in_order(times in proptest::collection::vec(1e-4f64..1e5, 1..300)) {
            let described = describe(2, 4, &times).unwrap();
            let levels: Vec<f64> = described.quantiles.iter().map(|q| q.ms).collect();
            prop_assert!(levels.is_sorted());
            let largest = times.iter().copied().fold(0.0, f64::max);
            prop_assert!(levels[0] > 0.0 && *levels.last().unwrap() <= largest);
            let [low, high] = described.p95_interval_ms;
            prop_assert!(low <= high && high <= largest);
            prop_assert!(described.planned_p95_ms.is_finite() && described.planned_p95_ms > 0.0);
            prop_assert!(described.fits.iter().all(|f| (0.0..=1.0).contains(&f.ks)));
            prop_assert!(described.fits.is_sorted_by(|a, b| a.ks <= b.ks));
        }

        #[test]
        fn another_unit_changes_nothing_but_the_unit(times in proptest::collection::vec(0.1f64..100.0, 40..200), k in 0.01f64..100.0) {
            let scaled: Vec<f64> = times.iter().map(|t| t * k).collect();
            let (a, b) = (describe(1, 1, &times).unwrap(), describe(1, 1, &scaled).unwrap());
            for (family, ks) in a.fits.iter().map(|f| (&f.family, f.ks)) {
                let other = b.fits.iter().find(|f| f.family == *family).unwrap();
                prop_assert!((ks - other.ks).abs() < 1e-6, "{}: {} and {}", family, ks, other.ks);
            }
        }
    }
}
