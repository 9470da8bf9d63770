//! Thousands of series in one process. A binary of its own, so that nothing else grows the process meanwhile.

use forecaster::{Forecast, Model, ModelConfig};

const START_MS: i64 = 1_704_067_200_000;
const MINUTE_MS: i64 = 60_000;
/// What a series of one-minute data may take.
const MOST_BYTES: usize = 512 * 1024;

/// A load like no other series' load.
fn value(series: usize, minute: usize) -> f64 {
    let phase = (minute + 37 * series) as f64 / 1440.0 * std::f64::consts::TAU;
    let noise = (minute * 7919 + series * 104_729) % 101;
    (20.0 + (series % 500) as f64) * (1.2 + phase.sin()) + noise as f64
}

fn feed(model: &mut Model, series: usize, minutes: std::ops::Range<usize>) -> Forecast {
    for minute in minutes {
        model.observe(START_MS + minute as i64 * MINUTE_MS, value(series, minute)).expect("sound");
        model.maintain();
    }
    model.forecast().expect("it has samples")
}

fn new() -> Model {
    Model::new(ModelConfig::new(MINUTE_MS as u64)).expect("sound")
}

/// Resident bytes of this process, where the kernel tells.
fn resident() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let line = text.lines().find(|line| line.starts_with("Rss:"))?;
    line.split_whitespace().nth(1)?.parse::<usize>().ok().map(|kib| kib * 1024)
}

/// Resident bytes that each of `n` things takes.
fn bytes_each<T>(n: usize, make: impl Fn(usize) -> T) -> (Vec<T>, Option<usize>) {
    let before = resident();
    let made: Vec<T> = (0..n).map(make).collect();
    let each = before.zip(resident()).map(|(before, after)| after.saturating_sub(before) / n);
    (made, each)
}

fn assert_small(what: &str, each: Option<usize>) {
    match each {
        Some(bytes) => {
            eprintln!("{what}: {} KiB resident a series", bytes.div_ceil(1024));
            assert!(bytes <= MOST_BYTES, "{what}: {bytes} bytes");
            // A measurement that measures nothing would pass too.
            assert!(bytes > 50_000, "{what}: {bytes} bytes are too few to be true");
        }
        None => eprintln!("SKIPPED: {what}: /proc/self/smaps_rollup cannot be read here"),
    }
}

#[test]
fn three_thousand_series_live_side_by_side_in_bounded_memory() {
    // Grown: more than the week that is kept, trees and all. The copies are what it takes.
    let mut grown = new();
    feed(&mut grown, 0, 0..11_000);
    let (copies, each) = bytes_each(500, |_| grown.clone());
    eprintln!("said: {} KiB", grown.memory_bytes().div_ceil(1024));
    assert_small("one-minute series after 11,000 samples", each);
    assert!(grown.memory_bytes() <= MOST_BYTES, "{}", grown.memory_bytes());
    if let Some(each) = each {
        assert!(each < grown.memory_bytes() + grown.memory_bytes() / 4, "said {}, takes {each}", grown.memory_bytes());
    }
    drop(copies);

    // Many: in turns, as observations come.
    const SERIES: usize = 3000;
    const MINUTES: usize = 24;
    let before = resident();
    let mut models: Vec<Model> = (0..SERIES).map(|_| new()).collect();
    let mut newest: Vec<Option<Forecast>> = vec![None; SERIES];
    for minute in 0..MINUTES {
        for series in 0..SERIES {
            // Another order every minute.
            let series = (series * 1009 + minute * 31) % SERIES;
            newest[series] = Some(feed(&mut models[series], series, minute..minute + 1));
        }
    }
    let each = before.zip(resident()).map(|(before, after)| after.saturating_sub(before) / SERIES);
    assert_small("three thousand young one-minute series", each);
    // Each is what it would be alone.
    for series in (0..SERIES).step_by(149) {
        assert_eq!(newest[series].as_ref(), Some(&feed(&mut new(), series, 0..MINUTES)), "series {series}");
    }
}
