//! What it takes to forecast many one-minute series on one core, refits included.
//!
//! ```text
//! cargo run --release -p forecaster --example many_series [-- --series 10000 --minutes 30 --horizons 9 --models 200]
//! ```
//!
//! The series are synthetic (`tests/support/synthetic.rs`, one seed each). A model is warmed up over three days, so
//! that its trees are fitted, then copied; each copy gets its own values from there, and its refits fall on different
//! minutes. Printed are the CPU time of a step (learn and forecast), of the refits between steps, the part of a minute
//! that all series take on one core, and the memory. Some models take turns for all: how many fit is a question of
//! memory, not of the time that is measured here.

#[path = "../tests/support/synthetic.rs"]
mod synthetic;

use forecaster::{Model, ModelConfig};
use std::error::Error;
use std::io::Write as _;
use std::time::{Duration, Instant};

const MINUTE_MS: u64 = 60_000;
const START_MS: i64 = 1_700_438_400_000;
const WARM_DAYS: usize = 3;
/// Models in memory unless told otherwise; the others are taken to cost the same. They are too many for the caches.
const MODELS: usize = 200;

fn main() -> Result<(), Box<dyn Error>> {
    let (mut series, mut minutes, mut horizons, mut most) = (10_000_usize, 30_usize, 9_usize, MODELS);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or(format!("{word} needs a value"))?;
        match word.as_str() {
            "--series" => series = value.parse()?,
            "--minutes" => minutes = value.parse()?,
            "--horizons" => horizons = value.parse()?,
            "--models" => most = value.parse::<usize>()?.max(1),
            _ => return Err(format!("unknown argument {word}").into()),
        }
    }
    let config = match horizons {
        9 => ModelConfig::new(MINUTE_MS),
        4 => ModelConfig { horizons: vec![1, 2, 6, 12], ..ModelConfig::new(MINUTE_MS) },
        _ => return Err("--horizons is 4 or 9".into()),
    };
    let kinds: Vec<_> = synthetic::KINDS.into_iter().filter(|kind| kind.interval_ms == MINUTE_MS).collect();
    let mut models = Vec::new();
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name).collect();
    let day = kinds[0].day_steps();
    let steps = WARM_DAYS * day;
    for (i, kind) in kinds.iter().enumerate() {
        let mut model = Model::new(config.clone())?;
        // Copies differ in how far they have come, so that their refits do not fall on the same minute.
        let values = kind.values(i as u64, steps + day);
        let apart = (day * kinds.len() / most).max(1);
        for (step, value) in values.iter().enumerate() {
            if step >= steps
                && (step - steps).is_multiple_of(apart)
                && models.len() < ((i + 1) * most).div_ceil(kinds.len()).min(most)
            {
                models.push((model.clone(), step, kind.values(1000 + models.len() as u64, minutes)));
            }
            model.observe(START_MS + step as i64 * MINUTE_MS as i64, *value)?;
            model.maintain();
        }
    }
    let mut output = std::io::stdout().lock();
    let (mut stepping, mut refitting) = (Vec::new(), Duration::ZERO);
    for minute in 0..minutes {
        for (model, step, values) in &mut models {
            let began = Instant::now();
            model.observe(START_MS + (*step + minute) as i64 * MINUTE_MS as i64, values[minute])?;
            let forecast = model.forecast();
            stepping.push(began.elapsed());
            let began = Instant::now();
            model.maintain();
            refitting += began.elapsed();
            std::hint::black_box(forecast);
        }
    }
    stepping.sort_unstable();
    let taken = stepping.len() as f64;
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    let mean = us(stepping.iter().sum::<Duration>()) / taken;
    let refit = us(refitting) / taken;
    writeln!(
        output,
        "{} models of {} KiB ({}), {horizons} horizons, {minutes} minutes",
        models.len(),
        models[0].0.memory_bytes() / 1024,
        names.join(", ")
    )?;
    writeln!(
        output,
        "learn and forecast: {mean:.1} us a step (least {:.1}, median {:.1}, 99 % {:.1})",
        us(stepping[0]),
        us(stepping[stepping.len() / 2]),
        us(stepping[stepping.len() * 99 / 100])
    )?;
    writeln!(output, "refits of the trees: {refit:.1} us a step")?;
    let part = |us: f64| 100.0 * us * series as f64 / (MINUTE_MS as f64 * 1000.0);
    writeln!(
        output,
        "{series} series take {:.1} % of a minute on one core: {:.1} % steps, {:.1} % refits",
        part(mean + refit),
        part(mean),
        part(refit)
    )?;
    Ok(())
}
