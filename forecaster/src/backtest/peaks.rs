//! Scores of the quantiles of a window's highest value.
//!
//! Windows overlap and errors last, so neighbouring hits are not independent: the interval of a coverage is a
//! bootstrap of whole days of origins.

use crate::peak::PeakForecast;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Draws of the bootstrap.
const DRAWS: usize = 1000;

/// Scores of the quantiles of the highest value of the next `steps` intervals, on windows of known values.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PeakScore {
    /// Steps of the window.
    pub steps: u32,
    /// Windows scored.
    pub n: usize,
    /// Pinball loss by level, per cent of the mean of the highest values.
    pub pinball: BTreeMap<String, Option<f64>>,
    /// Share of highest values at or below the quantile, by level.
    pub coverage: BTreeMap<String, f64>,
    /// 95 % interval of the coverage, by a bootstrap of whole days.
    pub coverage_interval: BTreeMap<String, [f64; 2]>,
    /// Pinball loss of the highest of the steps' quantiles, which is what a reader without these would take.
    pub steps_pinball: BTreeMap<String, Option<f64>>,
    /// Coverage of the same.
    pub steps_coverage: BTreeMap<String, f64>,
}

/// The scores for a person, a line a window; empty if there are none.
pub(super) fn table(scores: &[PeakScore]) -> String {
    let Some(first) = scores.first() else { return String::new() };
    let mut text =
        "\nhighest value of the next steps; in brackets what the highest of the steps' quantiles covers\n".to_owned();
    let _ = write!(text, "{:>6} {:>7}", "steps", "n");
    for level in first.coverage.keys() {
        let _ = write!(text, " {:>9} {:>15}", format!("pin%@{level}"), format!("cov@{level}"));
    }
    text.push('\n');
    for score in scores {
        let _ = write!(text, "{:>6} {:>7}", score.steps, score.n);
        for ((loss, share), of_steps) in
            score.pinball.values().zip(score.coverage.values()).zip(score.steps_coverage.values())
        {
            let loss = super::or_dash(*loss, 3);
            let _ = write!(text, " {loss:>9} {:>15}", format!("{share:.3} ({of_steps:.3})"));
        }
        text.push('\n');
    }
    text
}

/// Hits of one day, by level.
#[derive(Debug, Clone, Default)]
struct Day {
    n: usize,
    covered: Vec<usize>,
}

/// Sums over the windows of one length.
pub(super) struct PeakTally {
    steps: u32,
    n: usize,
    highest: f64,
    pinball: Vec<f64>,
    steps_pinball: Vec<f64>,
    steps_covered: Vec<usize>,
    days: BTreeMap<i64, Day>,
}

/// One window: what was forecast and what came.
pub(super) struct Outcome<'a> {
    /// Day of the origin.
    pub(super) day: i64,
    pub(super) highest: f64,
    pub(super) quantiles: &'a [f64],
    /// The highest of the steps' quantiles, by level.
    pub(super) of_steps: &'a [f64],
}

impl PeakTally {
    pub(super) fn new(steps: u32, levels: usize) -> Self {
        let zeros = vec![0.0; levels];
        PeakTally {
            steps,
            n: 0,
            highest: 0.0,
            pinball: zeros.clone(),
            steps_pinball: zeros,
            steps_covered: vec![0; levels],
            days: BTreeMap::new(),
        }
    }

    /// The forecast for this window among `peaks`.
    pub(super) fn of<'a>(&self, peaks: &'a [PeakForecast]) -> Option<&'a PeakForecast> {
        peaks.iter().find(|peak| peak.steps == self.steps)
    }

    pub(super) fn steps(&self) -> usize {
        self.steps as usize
    }

    pub(super) fn add(&mut self, outcome: &Outcome<'_>, levels: &[f64]) {
        self.n += 1;
        self.highest += outcome.highest;
        let day = self.days.entry(outcome.day).or_default();
        day.n += 1;
        day.covered.resize(levels.len(), 0);
        for (i, (&level, (&quantile, &of_steps))) in
            levels.iter().zip(outcome.quantiles.iter().zip(outcome.of_steps)).enumerate()
        {
            let loss = |above: f64| (level * above).max((level - 1.0) * above);
            self.pinball[i] += loss(outcome.highest - quantile);
            self.steps_pinball[i] += loss(outcome.highest - of_steps);
            self.steps_covered[i] += usize::from(outcome.highest <= of_steps);
            day.covered[i] += usize::from(outcome.highest <= quantile);
        }
    }

    pub(super) fn score(&self, levels: &[f64]) -> PeakScore {
        let n = self.n.max(1) as f64;
        let per_cent = |sum: &f64| (self.highest > 0.0).then(|| 100.0 * sum / self.highest);
        let keys = || levels.iter().map(ToString::to_string);
        let covered = |i: usize| self.days.values().map(|day| day.covered[i]).sum::<usize>() as f64 / n;
        PeakScore {
            steps: self.steps,
            n: self.n,
            pinball: keys().zip(self.pinball.iter().map(per_cent)).collect(),
            coverage: keys().zip((0..levels.len()).map(covered)).collect(),
            coverage_interval: keys().zip(self.intervals(levels.len())).collect(),
            steps_pinball: keys().zip(self.steps_pinball.iter().map(per_cent)).collect(),
            steps_coverage: keys().zip(self.steps_covered.iter().map(|&hits| hits as f64 / n)).collect(),
        }
    }

    fn intervals(&self, levels: usize) -> Vec<[f64; 2]> {
        let days: Vec<&Day> = self.days.values().collect();
        if days.is_empty() {
            return vec![[0.0, 1.0]; levels];
        }
        let mut random = SplitMix(u64::from(self.steps));
        let mut draws = vec![Vec::with_capacity(DRAWS); levels];
        for _ in 0..DRAWS {
            let (mut n, mut covered) = (0, vec![0; levels]);
            for _ in 0..days.len() {
                let day = days[random.below(days.len())];
                n += day.n;
                covered.iter_mut().zip(&day.covered).for_each(|(sum, hits)| *sum += hits);
            }
            draws.iter_mut().zip(covered).for_each(|(draws, hits)| draws.push(hits as f64 / n.max(1) as f64));
        }
        draws
            .into_iter()
            .map(|mut shares| {
                shares.sort_by(f64::total_cmp);
                [shares[DRAWS / 40], shares[DRAWS - 1 - DRAWS / 40]]
            })
            .collect()
    }
}

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): the same draws in every run.
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(word ^ (word >> 31)) * n as u128) >> 64) as usize
    }
}
