//! What it takes to forecast many series on one core, refits included.
//!
//! ```text
//! cargo run --release -p forecaster --example many_series [-- --series 10000 --horizons 9 --interval 1 --steps 30
//!     --models 200]
//! ```
//!
//! The series are synthetic (`tests/support/synthetic.rs`, one seed each), with intervals of 1, 5 or 15 minutes. A model
//! is warmed up until its trees are fitted, then copied; each copy gets its own values from there, and its refits fall
//! on different steps. Printed are the time of a step (learn and forecast), of the refits between steps, the part of an
//! interval that all series take on one core, and the memory. Some models take turns for all: how many fit is a
//! question of memory, not of the time that is measured here. With `--models 1` everything stays in the cache, and with
//! the usual 200 next to nothing does.

#[path = "../tests/support/synthetic.rs"]
mod synthetic;

use forecaster::{Model, ModelConfig};
use std::error::Error;
use std::io::Write as _;
use std::time::{Duration, Instant};

const MINUTE_MS: u64 = 60_000;
const START_MS: i64 = 1_700_438_400_000;
/// Days before the measurement, and the fewest steps: trees need 600 after the first day.
const WARM_DAYS: usize = 3;
const WARM_STEPS: usize = 1500;
/// Models in memory unless told otherwise; the others are taken to cost the same. They are too many for the caches.
const MODELS: usize = 200;

fn main() -> Result<(), Box<dyn Error>> {
    let (mut series, mut taken, mut horizons, mut most) = (10_000_usize, 30_usize, 9_usize, MODELS);
    let mut interval_ms = MINUTE_MS;
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or(format!("{word} needs a value"))?;
        match word.as_str() {
            "--series" => series = value.parse()?,
            "--steps" => taken = value.parse()?,
            "--horizons" => horizons = value.parse()?,
            "--interval" => interval_ms = value.parse::<u64>()? * MINUTE_MS,
            "--models" => most = value.parse::<usize>()?.max(1),
            _ => return Err(format!("unknown argument {word}").into()),
        }
    }
    let config = match horizons {
        9 => ModelConfig::new(interval_ms),
        4 => ModelConfig { horizons: vec![1, 2, 6, 12], ..ModelConfig::new(interval_ms) },
        _ => return Err("--horizons is 4 or 9".into()),
    };
    let kinds: Vec<_> = synthetic::KINDS.into_iter().filter(|kind| kind.interval_ms == interval_ms).collect();
    if kinds.is_empty() {
        return Err("no synthetic series has this interval".into());
    }
    let mut models = Vec::new();
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name).collect();
    let day = kinds[0].day_steps();
    let steps = (WARM_DAYS * day).max(WARM_STEPS);
    for (i, kind) in kinds.iter().enumerate() {
        let mut model = Model::new(config.clone())?;
        // Copies differ in how far they have come, so that their refits do not fall on the same step.
        let values = kind.values(i as u64, steps + day);
        let apart = (day * kinds.len() / most).max(1);
        for (step, value) in values.iter().enumerate() {
            if step >= steps
                && (step - steps).is_multiple_of(apart)
                && models.len() < ((i + 1) * most).div_ceil(kinds.len()).min(most)
            {
                models.push((model.clone(), step, kind.values(1000 + models.len() as u64, taken)));
            }
            model.observe(START_MS + step as i64 * interval_ms as i64, *value)?;
            model.maintain();
        }
    }
    let mut output = std::io::stdout().lock();
    let (mut stepping, mut refitting) = (Vec::new(), Duration::ZERO);
    for i in 0..taken {
        for (model, step, values) in &mut models {
            let began = Instant::now();
            model.observe(START_MS + (*step + i) as i64 * interval_ms as i64, values[i])?;
            let forecast = model.forecast();
            stepping.push(began.elapsed());
            let began = Instant::now();
            model.maintain();
            refitting += began.elapsed();
            std::hint::black_box(forecast);
        }
    }
    stepping.sort_unstable();
    let n = stepping.len() as f64;
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    let mean = us(stepping.iter().sum::<Duration>()) / n;
    let refit = us(refitting) / n;
    writeln!(
        output,
        "{} models of {} KiB ({}), {horizons} horizons, {taken} steps of {} minutes",
        models.len(),
        models[0].0.memory_bytes() / 1024,
        names.join(", "),
        interval_ms / MINUTE_MS,
    )?;
    writeln!(
        output,
        "learn and forecast: {mean:.1} us a step (least {:.1}, median {:.1}, 99 % {:.1})",
        us(stepping[0]),
        us(stepping[stepping.len() / 2]),
        us(stepping[stepping.len() * 99 / 100])
    )?;
    writeln!(output, "refits of the trees: {refit:.1} us a step")?;
    let part = |us: f64| 100.0 * us * series as f64 / (interval_ms as f64 * 1000.0);
    writeln!(
        output,
        "{series} series take {:.1} % of an interval on one core: {:.1} % steps, {:.1} % refits",
        part(mean + refit),
        part(mean),
        part(refit)
    )?;
    Ok(())
}
