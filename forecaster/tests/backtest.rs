//! The backtest's numbers: by hand on a small series, and against the naive forecasts on recorded load.

use forecaster::backtest::{self, CsvSeries, Error, Method, Options, Report};
use forecaster::{CalendarConfig, ExpertKind};
use std::path::PathBuf;

/// The folder of recorded load, if there is one; loud when not.
fn recorded() -> Option<PathBuf> {
    let folder = std::env::var_os("BARISTA_DATA")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"), PathBuf::from);
    let folder = folder.join("load");
    if folder.is_dir() {
        return Some(folder);
    }
    let why = format!("no recorded load in {}; set BARISTA_DATA", folder.display());
    assert!(std::env::var("BARISTA_REQUIRE_REAL").as_deref() != Ok("1"), "{why}");
    eprintln!("SKIPPED: {why}");
    None
}

fn score(series: &CsvSeries, method: Method) -> Report {
    backtest::run(series, &Options { method, ..Options::default() }).expect("it can be scored")
}

/// The ensemble against the naive forecasts, in one go so that a series is read once.
fn check(name: &str) {
    let Some(folder) = recorded() else { return };
    let series = CsvSeries::read(&folder.join(format!("{name}.csv"))).expect("a series");
    if cfg!(debug_assertions) && series.values.len() > 15_000 && std::env::var("BARISTA_REQUIRE_REAL").is_err() {
        eprintln!("SKIPPED: {name} has {} rows, too many without optimisation; use --release", series.values.len());
        return;
    }
    let report = score(&series, Method::Ensemble);
    let ours = report.mean_mase().expect("a ratio");
    for kind in [ExpertKind::SeasonalDay, ExpertKind::LastValue] {
        let naive = score(&series, Method::Expert(kind)).mean_mase().expect("a ratio");
        assert!(ours < naive, "{name}: {ours:.3} against {kind} {naive:.3}\n{}", report.table());
    }
    let pooled =
        |level: &str| report.horizons.iter().map(|h| h.coverage[level]).sum::<f64>() / report.horizons.len() as f64;
    for (level, nominal, most) in [("0.95", 0.95, 0.010), ("0.99", 0.99, 0.005)] {
        let share = pooled(level);
        assert!((share - nominal).abs() <= most, "{name}: coverage at {level} is {share:.4}\n{}", report.table());
    }
}

#[test]
fn nyc_taxi() {
    check("nyc_taxi");
}

#[test]
fn elb_requests() {
    check("elb_requests");
}

#[test]
fn nasa_http() {
    check("nasa_http");
}

#[test]
fn fremont_bike() {
    check("fremont_bike");
}

#[test]
fn i94_traffic() {
    check("i94_traffic");
}

#[test]
fn wc98() {
    check("wc98");
}

/// The baseline must be as strong as the method is: Prophet with a ridge compensator has .253 in the same protocol
/// (`bench/peers/prophet_compensator.py`).
#[test]
fn the_paper_s_method_lives_with_one_minute_data() {
    let Some(folder) = recorded() else { return };
    let series = CsvSeries::read(&folder.join("wc98.csv")).expect("a series");
    if cfg!(debug_assertions) && std::env::var("BARISTA_REQUIRE_REAL").is_err() {
        eprintln!("SKIPPED: wc98 has too many rows without optimisation; use --release");
        return;
    }
    let report = score(&series, Method::Expert(ExpertKind::Barista2019Ridge));
    assert!(report.mean_mase().is_some_and(|mase| mase < 0.27), "{}", report.table());
}

/// The naive scores do not depend on how anything learns: they pin the protocol to published figures.
#[test]
fn the_protocol_gives_the_known_naive_scores() {
    let Some(folder) = recorded() else { return };
    let series = CsvSeries::read(&folder.join("nyc_taxi.csv")).expect("a series");
    for (kind, expected) in [(ExpertKind::LastValue, 4.14), (ExpertKind::SeasonalWeek, 2.23)] {
        let mase = score(&series, Method::Expert(kind)).mean_mase().expect("a ratio");
        assert!((mase - expected).abs() < 0.005, "{kind}: {mase}");
    }
}

/// Day of four steps; the last value is the forecast.
fn tiny(values: &[f64]) -> (CsvSeries, Options) {
    let series = CsvSeries {
        name: "tiny".to_owned(),
        start_ms: 0,
        interval_ms: 1000,
        values: values.iter().map(|value| Some(*value)).collect(),
    };
    let options = Options {
        horizons: vec![1, 2],
        train: 0.5,
        method: Method::Expert(ExpertKind::LastValue),
        calendar: CalendarConfig { day_ms: 4000, week_ms: 8000, ..CalendarConfig::default() },
        ..Options::default()
    };
    (series, options)
}

#[test]
fn scores_are_what_they_say() {
    // Split 5, so targets are 7, 8, 9: values 4, 10, 6.
    let (series, options) = tiny(&[1.0, 2.0, 3.0, 4.0, 3.0, 8.0, 2.0, 4.0, 10.0, 6.0]);
    let report = backtest::run(&series, &options).expect("it can be scored");
    let [one, two] = &report.horizons[..] else { panic!("{report:?}") };
    assert_eq!((one.h, one.n, two.h, two.n), (1, 3, 2, 3));
    // One step: 2→4, 4→10, 10→6. Two steps: 8→4, 2→10, 4→6.
    assert_eq!((one.mae, two.mae), (4.0, 14.0 / 3.0));
    assert_eq!(one.rmse, (56.0_f64 / 3.0).sqrt());
    assert_eq!(one.wape, Some(60.0));
    assert!((one.smape - 100.0 * (4.0 / 6.0 + 12.0 / 14.0 + 8.0 / 16.0) / 3.0).abs() < 1e-9);
    // Seasonal naive on the first five: only |3 - 1| a day apart.
    assert_eq!(one.mase, Some(2.0));
    assert_eq!(report.mean_mase(), Some((2.0 + 7.0 / 3.0) / 2.0));
}

#[test]
fn the_report_has_the_keys_that_programs_read() {
    let (series, options) = tiny(&[1.0, 2.0, 3.0, 4.0, 3.0, 8.0, 2.0, 4.0, 10.0, 6.0]);
    let report = backtest::run(&series, &options).expect("it can be scored");
    let json = serde_json::to_value(&report).expect("it can be written");
    for key in ["series", "model", "rows", "interval_s", "us_per_step", "bytes_per_series", "horizons"] {
        assert!(json.get(key).is_some(), "{key}");
    }
    for key in ["h", "n", "mae", "rmse", "wape", "smape", "mase", "pinball", "coverage"] {
        assert!(json["horizons"][0].get(key).is_some(), "{key}");
    }
    for key in ["0.95", "0.99"] {
        assert!(json["horizons"][0]["pinball"][key].is_number() && json["horizons"][0]["coverage"][key].is_number());
    }
    assert_eq!((json["model"].as_str(), json["interval_s"].as_f64()), (Some("last_value"), Some(1.0)));
    let table = report.table();
    assert!(table.lines().count() >= 5 && table.contains("MASE") && table.contains("cov@0.99"), "{table}");
}

#[test]
fn unknown_samples_are_neither_given_nor_scored() {
    let (mut series, options) = tiny(&[1.0, 2.0, 3.0, 4.0, 3.0, 8.0, 2.0, 4.0, 10.0, 6.0]);
    series.values[8] = None;
    let report = backtest::run(&series, &options).expect("it can be scored");
    assert_eq!((report.rows, report.missing), (10, 1));
    // Targets 7 and 9; one step before 9 is unknown, two steps before is 4.
    assert_eq!((report.horizons[0].n, report.horizons[0].mae), (1, 2.0));
    assert_eq!((report.horizons[1].n, report.horizons[1].mae), (2, 3.0));
}

#[test]
fn what_cannot_be_scored_says_why() {
    let (series, options) = tiny(&[1.0; 3]);
    assert!(matches!(backtest::run(&series, &options), Err(Error::TooShort { rows: 3, split: 1 })));
    let (series, options) = tiny(&[1.0; 10]);
    let no_share = Options { train: 1.0, ..options.clone() };
    assert!(matches!(backtest::run(&series, &no_share), Err(Error::Train(_))));
    let daily = CsvSeries { interval_ms: 86_400_000, ..series };
    let error = backtest::run(&daily, &Options::default()).map(|_| ()).expect_err("too coarse").to_string();
    assert!(error.contains("fewer than four intervals"), "{error}");
    let unknown = "arima".parse::<Method>().map_err(|error| error.to_string());
    assert!(
        unknown
            .is_err_and(|text| text.contains("`arima`") && text.contains("ensemble") && text.contains("barista2019"))
    );
    for kind in ExpertKind::ALL {
        let (series, options) = tiny(&[1.0; 30]);
        let scored = backtest::run(&series, &Options { method: Method::Expert(kind), ..options });
        let corrects = [ExpertKind::Stack, ExpertKind::Exogenous].contains(&kind);
        assert_eq!(matches!(scored, Err(Error::NeedsOthers(_))), corrects, "{kind}: {scored:?}");
    }
    assert_eq!("ensemble".parse::<Method>(), Ok(Method::Ensemble));
}

/// Two weeks of `interval_s`, with a rhythm of a day, noise, a hole and a jump.
fn made(interval_s: u64, rows: usize) -> CsvSeries {
    use rand::{Rng, SeedableRng};
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(rows as u64);
    let day = 86_400.0 / interval_s as f64;
    let values = (0..rows).map(|i| {
        let load = 100.0 + 50.0 * (std::f64::consts::TAU * i as f64 / day).sin() + random.random_range(-10.0..10.0);
        let level = if i > rows * 3 / 4 { 3.0 } else { 1.0 };
        (!(rows / 2..rows / 2 + 5).contains(&i)).then_some(level * load)
    });
    CsvSeries {
        name: "load <of> \"A&B\"".to_owned(),
        start_ms: 1_704_067_200_000,
        interval_ms: 1000 * interval_s,
        values: values.collect(),
    }
}

#[test]
fn the_page_shows_everything_and_breaks_at_no_name() {
    let series = made(3600, 700);
    let options = Options { windows: vec![1, 12], ..Options::default() };
    let detail = backtest::run_in_detail(&series, &options).expect("it can be scored");
    let page = backtest::page(&series, &options, &detail);
    assert!(page.contains("load &lt;of&gt; &quot;A&amp;B&quot;") && !page.contains("<of>"));
    for absent in ["NaN", "inf ", "<script", "http:", "https:", "src="] {
        assert!(!page.contains(absent), "{absent}");
    }
    for part in
        ["not scored", "cold start", "shift", "12 steps ahead", "0.5 to 0.95", "0.5 to 0.99", "observed", "median"]
    {
        assert!(page.contains(part), "{part}");
    }
    for part in [
        "Mean absolute error of each",
        "at or below the quantile 0.95",
        "Weight of each expert",
        "Highest of the next 12",
    ] {
        assert!(page.contains(part), "{part}");
    }
    let report = &detail.report;
    let mase = report.horizons[1].mase.expect("a ratio");
    assert!(
        page.contains(&format!("<td>{mase:.3}"))
            && page.contains(&format!("{:.1}", 100.0 * report.peaks[1].coverage["0.95"]))
    );
    // Whole series; four horizons with the scored part and, where it is longer than a week, the end and the worst;
    // errors and coverage; two windows; weights.
    assert_eq!(page.matches("<svg").count(), 1 + 4 * 3 + 2 + 2 + 1);
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
}

#[test]
fn fifty_thousand_points_make_a_page_of_bounded_size() {
    let series = made(60, 50_000);
    let options = Options {
        horizons: vec![1, 2, 4, 8, 12, 20, 30],
        levels: vec![0.05, 0.5, 0.95, 0.99],
        windows: vec![10, 30],
        method: Method::Expert(ExpertKind::EwmaFast),
        ..Options::default()
    };
    let detail = backtest::run_in_detail(&series, &options).expect("it can be scored");
    let page = backtest::page(&series, &options, &detail);
    assert!(page.len() < 2_000_000, "{} bytes", page.len());
    assert!(
        page.contains("0.05 to 0.95") && page.contains("30 steps ahead") && !page.contains("Weight of each expert")
    );
}

#[test]
fn the_page_of_very_few_targets_can_be_made() {
    for rows in 37..50 {
        let mut series = made(3600, rows);
        series.values[rows - 1] = None;
        let options = Options { horizons: vec![12], ..Options::default() };
        let detail = backtest::run_in_detail(&series, &options).expect("it can be scored");
        let page = backtest::page(&series, &options, &detail);
        assert!(page.contains("</html>") && !page.contains("NaN"));
    }
}

#[test]
fn windows_beyond_the_forecast_are_refused_and_others_are_in_the_table() {
    let series = made(3600, 300);
    let report = backtest::run(&series, &Options { windows: vec![6], ..Options::default() }).expect("it can be scored");
    assert!(report.table().contains("highest value of the next steps"), "{}", report.table());
    let error = backtest::run(&series, &Options { windows: vec![6, 60], ..Options::default() }).expect_err("too long");
    assert!(error.to_string().contains("last horizon (12 steps)"), "{error}");
}
