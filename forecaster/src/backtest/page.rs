//! The page of a backtest: the series, the forecasts with their band, the errors, and what the model stood on.
//!
//! Invariants: its size is bounded whatever the length of the series (a curve is thinned to its extremes per pixel, and
//! [`MOST_HORIZONS`] horizons are drawn); unknown samples are gaps.

use super::{Detail, Mood, Options, PeakScore, Scored, ScoredPeak};
use crate::backtest::CsvSeries;
use runtime::page::{Chart, Layer, escape};
use std::fmt::Write as _;

mod time;

use time::Clock;

/// Horizons that get charts; the table has all.
const MOST_HORIZONS: usize = 6;
/// Experts with an area of their own among the weights.
const MOST_EXPERTS: usize = 9;
/// Most points of a closer look.
const CLOSE: usize = 1440;
const OBSERVED: usize = 8;
const FORECAST: usize = 0;

/// The page of a backtest that was run with these options; see [`super::run_in_detail`].
pub fn page(series: &CsvSeries, options: &Options, detail: &Detail) -> String {
    let view = View { series, detail, clock: Clock::new(&options.calendar.timezone), close: close(series, options) };
    let report = &detail.report;
    let mut body = format!("<h1>{}</h1>{}{}", escape(&report.series), view.summary(), view.scores());
    body.push_str(&view.whole());
    let horizons: Vec<u32> = report.horizons.iter().map(|score| score.h).collect();
    for h in spread(&horizons) {
        body.push_str(&view.horizon(h));
    }
    body.push_str(&view.errors(options.calendar.day_ms, &spread(&horizons)));
    body.push_str(&view.peaks());
    body.push_str(&view.weights());
    body.push_str(&format!("<p class=dim>{NOTES}</p>"));
    runtime::page::page(&format!("{} — barista backtest", report.series), &body)
}

const NOTES: &str = "MASE is the mean absolute error over that of the better of the values a day and a week before, on the \
part that is not scored: below 1 the forecast is better than repeating the past. Pinball is in per cent of the mean \
target. Coverage is the share of values at or below the quantile: it should equal the level. MAE, WAPE and MASE are of \
the median, RMSE of the mean.";

/// Steps of a closer look: a week if that is not too many, else a day.
fn close(series: &CsvSeries, options: &Options) -> usize {
    let steps = |season_ms: u64| (season_ms / series.interval_ms.max(1)) as usize;
    let week = steps(options.calendar.week_ms);
    if week <= 700 { week.max(48) } else { steps(options.calendar.day_ms).clamp(48, CLOSE) }
}

/// At most [`MOST_HORIZONS`] of them, the first and the last included.
fn spread(horizons: &[u32]) -> Vec<u32> {
    if horizons.len() <= MOST_HORIZONS {
        return horizons.to_vec();
    }
    let last = horizons.len() - 1;
    (0..MOST_HORIZONS).map(|k| horizons[k * last / (MOST_HORIZONS - 1)]).collect()
}

/// A duration as a person says it.
fn said(ms: u64) -> String {
    for (unit, name) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s")] {
        if ms >= unit {
            return format!("{} {name}", runtime::page::number(ms as f64 / unit as f64));
        }
    }
    format!("{ms} ms")
}

struct View<'a> {
    series: &'a CsvSeries,
    detail: &'a Detail,
    clock: Clock,
    /// Steps of a closer look.
    close: usize,
}

impl View<'_> {
    fn at(&self, index: usize) -> f64 {
        self.series.start_ms(index) as f64
    }

    fn summary(&self) -> String {
        let report = &self.detail.report;
        let verdict = report.mean_mase().map_or(String::new(), |mase| format!(", mean MASE <b>{mase:.3}</b>"));
        let unknown = if report.missing > 0 { format!(", {} of them unknown", report.missing) } else { String::new() };
        format!(
            "<p><b>{model}</b>{verdict}. {rows} samples of {interval}{unknown}, {from} to {to}. Scored from {first} on; what \
             lies before is only learned from. Every forecast was made with what was known so many steps before. \
             {us:.1} µs to learn a sample and forecast, {refits:.1} µs a step for refits between; {kib} KiB.</p>",
            model = escape(&report.model),
            rows = report.rows,
            interval = said(self.series.interval_ms),
            from = self.clock.date(self.series.start_ms),
            to = self.clock.date(self.series.start_ms(report.rows)),
            first = self.clock.date(self.series.start_ms(self.detail.first_target)),
            us = report.us_per_step,
            refits = report.background_us_per_step,
            kib = report.bytes_per_series.div_ceil(1024),
        )
    }

    fn scores(&self) -> String {
        let n = self.detail.levels.len();
        let levels: String = self.detail.levels.iter().map(|level| format!("<th>{level}")).collect();
        let mut table = format!(
            "<div class=wide><table><thead><tr><th rowspan=2>steps ahead<th rowspan=2>targets<th rowspan=2>MAE<th rowspan=2>\
             RMSE<th rowspan=2>WAPE %<th rowspan=2>MASE<th colspan={n}>pinball, %<th colspan={n}>coverage, %</tr><tr>\
             {levels}{levels}</tr></thead><tbody>"
        );
        for row in &self.detail.report.horizons {
            let _ = write!(
                table,
                "<tr><td>{} <span class=dim>({})</span><td>{}<td>{}<td>{}<td>{}<td>{}",
                row.h,
                said(u64::from(row.h) * self.series.interval_ms),
                row.n,
                digits(row.mae),
                digits(row.rmse),
                row.wape.map_or("–".to_owned(), |wape| format!("{wape:.2}")),
                row.mase.map_or("–".to_owned(), |mase| format!("{mase:.3}")),
            );
            for level in &self.detail.levels {
                let loss = row.pinball.get(&level.to_string()).copied().flatten();
                let _ = write!(table, "<td>{}", loss.map_or("–".to_owned(), |loss| format!("{loss:.3}")));
            }
            for level in &self.detail.levels {
                table.push_str(&coverage_cell(row.coverage.get(&level.to_string()).copied(), *level));
            }
        }
        table + "</tbody></table></div>"
    }

    /// The whole series, the part that is not scored, and what the model thought of itself.
    fn whole(&self) -> String {
        let (first, last) = (self.at(0), self.at(self.series.values.len()));
        let unscored = Layer::Span {
            name: "not scored".to_owned(),
            color: OBSERVED,
            x: (first, self.at(self.detail.first_target)),
        };
        let mut layers = vec![unscored];
        layers.extend(self.spells("cold start", 5, |mood| mood.cold));
        layers.extend(self.spells("shift: the errors changed", 3, |mood| mood.shift));
        layers.push(self.observed(0, self.series.values.len()));
        format!("<h2>The series</h2>{}", self.chart("", (first, last), layers, 180.0).figure())
    }

    /// Where a flag was up.
    fn spells(&self, name: &str, color: usize, flag: impl Fn(&Mood) -> bool) -> Vec<Layer> {
        let moods = &self.detail.moods;
        let mut spells: Vec<Layer> = Vec::new();
        for spell in moods.chunk_by(|a, b| flag(a) == flag(b)).filter(|spell| spell.first().is_some_and(&flag)) {
            if let (Some(first), Some(last)) = (spell.first(), spell.last()) {
                // One entry in the legend is enough.
                let name = if spells.is_empty() { name.to_owned() } else { String::new() };
                spells.push(Layer::Span { name, color, x: (self.at(first.origin), self.at(last.origin + 1)) });
            }
        }
        spells
    }

    fn observed(&self, from: usize, to: usize) -> Layer {
        let values = self.series.values.get(from..to).unwrap_or_default();
        let point = |(i, value): (usize, &Option<f64>)| (self.at(from + i), value.unwrap_or(f64::NAN));
        let points = values.iter().enumerate().map(point).collect();
        Layer::Curve { name: "observed".to_owned(), color: OBSERVED, points }
    }

    fn chart(&self, caption: &str, x: (f64, f64), layers: Vec<Layer>, height: f64) -> Chart {
        Chart { caption: caption.to_owned(), x, ticks: self.clock.ticks(x), bottom: 0.0, top: None, height, layers }
    }

    fn horizon(&self, h: u32) -> String {
        let scored: Vec<&Scored> = self.detail.forecasts.iter().filter(|scored| scored.forecast.step == h).collect();
        let (Some(first), Some(last)) = (scored.first(), scored.last()) else { return String::new() };
        let steps = if h == 1 { "step" } else { "steps" };
        let mut html = format!("<h2>{h} {steps} ahead, {}</h2>", said(u64::from(h) * self.series.interval_ms));
        html.push_str(&self.forecast("The scored part", &scored, first.target, last.target + 1, 180.0));
        if scored.len() > self.close {
            let late = (last.target + 1).saturating_sub(self.close);
            html.push_str(&self.forecast("The end", &scored, late, last.target + 1, 180.0));
            let worst = worst(&scored, self.close);
            html.push_str(&self.forecast("Where the errors were largest", &scored, worst, worst + self.close, 180.0));
        }
        html
    }

    /// Forecasts of the targets in `from..to`, and what came.
    fn forecast(&self, caption: &str, scored: &[&Scored], from: usize, to: usize, height: f64) -> String {
        let inside: Vec<&&Scored> = scored.iter().filter(|scored| (from..to).contains(&scored.target)).collect();
        let targets: Vec<usize> = inside.iter().map(|scored| scored.target).collect();
        let mut layers = self.bands(&targets, &|i, level| {
            let forecast = &inside[i].forecast;
            level.map_or(Some(forecast.median), |level| forecast.quantiles.get(level).copied())
        });
        layers.push(self.observed(from, to.min(self.series.values.len())));
        let medians = self.with_gaps(&targets, |i| inside[i].forecast.median);
        layers.push(Layer::Curve { name: "median".to_owned(), color: FORECAST, points: medians });
        self.chart(caption, (self.at(from), self.at(to)), layers, height).figure()
    }

    /// From the lowest level that is at most one half (else the median) up to the highest, and to 0.95 within.
    fn bands(&self, places: &[usize], value: &dyn Fn(usize, Option<usize>) -> Option<f64>) -> Vec<Layer> {
        let levels = &self.detail.levels;
        let low = levels.first().filter(|level| **level <= 0.5).map(|_| 0);
        let highest = levels.iter().rposition(|level| *level > 0.5);
        let inner = levels.iter().position(|level| (level - 0.95).abs() < 1e-9).filter(|at| Some(*at) != highest);
        let named = |at: Option<usize>| at.map_or("median".to_owned(), |at| levels[at].to_string());
        let band = |(high, opacity): (usize, f64)| {
            let lows = self.with_gaps(places, |i| value(i, low).unwrap_or(f64::NAN));
            let highs = self.with_gaps(places, |i| value(i, Some(high)).unwrap_or(f64::NAN));
            let points = lows.iter().zip(&highs).map(|(low, high)| (low.0, low.1, high.1)).collect();
            Layer::Band { name: format!("{} to {}", named(low), levels[high]), color: FORECAST, opacity, points }
        };
        highest.map(|at| (at, 0.2)).into_iter().chain(inner.map(|at| (at, 0.3))).map(band).collect()
    }

    /// A point for each place, and none that is a number where places are left out.
    fn with_gaps(&self, places: &[usize], value: impl Fn(usize) -> f64) -> Vec<(f64, f64)> {
        let mut points = Vec::with_capacity(places.len());
        for (i, &place) in places.iter().enumerate() {
            if i > 0 && places[i - 1] + 1 != place {
                points.push((self.at(place), f64::NAN));
            }
            points.push((self.at(place), value(i)));
        }
        points
    }

    /// Mean error and coverage of each day, or of sixty parts if the days are too few or too many.
    fn errors(&self, day_ms: u64, horizons: &[u32]) -> String {
        let (first, last) = (self.detail.first_target, self.series.values.len());
        let day = (day_ms / self.series.interval_ms.max(1)) as usize;
        let by_day = (8..=240).contains(&((last - first) / day.max(1)));
        let length = if by_day { day } else { (last - first).div_ceil(60) };
        let levels = &self.detail.levels;
        let level = levels.iter().position(|level| (level - 0.95).abs() < 1e-9).or(levels.len().checked_sub(1));
        let (mut errors, mut covered) = (Vec::new(), Vec::new());
        for (color, &h) in horizons.iter().enumerate() {
            let mut bins = vec![(0.0, 0.0, 0.0); (last - first).div_ceil(length)];
            for scored in self.detail.forecasts.iter().filter(|scored| scored.forecast.step == h) {
                let bin = &mut bins[(scored.target - first) / length];
                let quantile = level.and_then(|level| scored.forecast.quantiles.get(level));
                bin.0 += 1.0;
                bin.1 += (scored.value - scored.forecast.median).abs();
                bin.2 += f64::from(u8::from(quantile.is_some_and(|quantile| scored.value <= *quantile)));
            }
            let at = |i: usize| self.at(first) + (i as f64 + 0.5) * (length as u64 * self.series.interval_ms) as f64;
            let curve = |of: &dyn Fn(&(f64, f64, f64)) -> f64| Layer::Curve {
                name: format!("{h} ahead"),
                color,
                // A part without a target divides zero by zero, which is a gap.
                points: bins.iter().enumerate().map(|(i, bin)| (at(i), of(bin))).collect(),
            };
            errors.push(curve(&|bin| bin.1 / bin.0));
            covered.push(curve(&|bin| bin.2 / bin.0));
        }
        let part = if by_day { "of each day".to_owned() } else { format!("of each {length} steps") };
        let x = (self.at(first), self.at(last));
        let mut html = format!("<h2>Errors</h2>{}", {
            self.chart(&format!("Mean absolute error {part}"), x, errors, 180.0).figure()
        });
        if let Some(level) = level {
            covered.push(Layer::Level(levels[level]));
            let caption = format!("Share at or below the quantile {} {part}", levels[level]);
            let chart = Chart { bottom: lowest(&covered), top: Some(1.0), ..self.chart(&caption, x, covered, 150.0) };
            html.push_str(&chart.figure());
        }
        html
    }

    fn peaks(&self) -> String {
        if self.detail.report.peaks.is_empty() {
            return String::new();
        }
        let mut html =
            "<h2>The highest value of the next steps</h2><div class=wide><table><thead><tr><th rowspan=2>window\
                        <th rowspan=2>scored"
                .to_owned();
        for level in &self.detail.levels {
            let _ = write!(html, "<th colspan=3>{level}");
        }
        html.push_str("</tr><tr>");
        html.push_str(&"<th>pinball, %<th>coverage, %<th class=dim>steps".repeat(self.detail.levels.len()));
        html.push_str("</tr></thead><tbody>");
        for score in &self.detail.report.peaks {
            html.push_str(&self.peak_row(score));
        }
        html.push_str("</tbody></table></div><p class=dim>steps: coverage of the highest of the steps’ quantiles.</p>");
        for score in &self.detail.report.peaks {
            html.push_str(&self.peak_chart(score));
        }
        html
    }

    fn peak_row(&self, score: &PeakScore) -> String {
        let window = said(u64::from(score.steps) * self.series.interval_ms);
        let mut row = format!("<tr><td>{} <span class=dim>({window})</span><td>{}", score.steps, score.n);
        for level in &self.detail.levels {
            let key = level.to_string();
            let loss = score.pinball.get(&key).copied().flatten();
            let _ = write!(row, "<td>{}", loss.map_or("–".to_owned(), |loss| format!("{loss:.3}")));
            row.push_str(&coverage_cell(score.coverage.get(&key).copied(), *level));
            let other =
                score.steps_coverage.get(&key).map_or("–".to_owned(), |share| format!("{:.1}", 100.0 * share));
            let _ = write!(row, "<td class=dim>{other}");
        }
        row
    }

    fn peak_chart(&self, score: &PeakScore) -> String {
        let all: Vec<&ScoredPeak> = self.detail.peaks.iter().filter(|peak| peak.steps == score.steps).collect();
        let late = &all[all.len().saturating_sub(self.close)..];
        let (Some(first), Some(last)) = (late.first(), late.last()) else { return String::new() };
        let origins: Vec<usize> = late.iter().map(|peak| peak.origin).collect();
        let middle = self.detail.levels.iter().position(|level| *level >= 0.5).unwrap_or(0);
        let mut layers = self.bands(&origins, &|i, level| late[i].quantiles.get(level.unwrap_or(middle)).copied());
        let came = self.with_gaps(&origins, |i| late[i].highest);
        layers.push(Layer::Curve { name: "highest that came".to_owned(), color: OBSERVED, points: came });
        let caption = format!("Highest of the next {} steps, by the time of the forecast", score.steps);
        self.chart(&caption, (self.at(first.origin), self.at(last.origin + 1)), layers, 180.0).figure()
    }

    /// Areas of the experts' weights, the heaviest lowest.
    fn weights(&self) -> String {
        let moods: Vec<&Mood> = self.detail.moods.iter().filter(|mood| mood.weights.len() > 1).collect();
        let Some(kinds) = moods.last().map(|mood| mood.weights.iter().map(|(kind, _)| *kind).collect::<Vec<_>>())
        else {
            return String::new();
        };
        let weight = |mood: &Mood, kind| {
            let of = mood.weights.iter().find(|(known, _)| *known == kind);
            of.map_or(0.0, |(_, weight)| weight.max(0.0))
        };
        let mut ranked: Vec<_> =
            kinds.into_iter().map(|kind| (moods.iter().map(|mood| weight(mood, kind)).sum::<f64>(), kind)).collect();
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut below = vec![0.0; moods.len()];
        let mut layers = Vec::new();
        for (color, (_, kind)) in ranked.into_iter().take(MOST_EXPERTS).enumerate() {
            let points = moods.iter().zip(&mut below).map(|(mood, below)| {
                let low = *below;
                *below += weight(mood, kind);
                (self.at(mood.origin), low, *below)
            });
            layers.push(Layer::Band { name: kind.name().to_owned(), color, opacity: 0.8, points: points.collect() });
        }
        let caption = "Weight of each expert in the mean one step ahead";
        let x = (self.at(0), self.at(self.series.values.len()));
        let chart = Chart { top: Some(1.0), ..self.chart(caption, x, layers, 200.0) };
        format!(
            "<h2>What it stands on</h2>{}<p class=dim>What is left free belongs to lighter experts.</p>",
            chart.figure()
        )
    }
}

fn coverage_cell(share: Option<f64>, level: f64) -> String {
    let Some(share) = share else { return "<td>–".to_owned() };
    let mark = match (share - level).abs() {
        off if off <= 0.01 => "good",
        off if off > 0.03 => "bad",
        _ => "",
    };
    format!("<td class=\"{mark}\">{:.1}", 100.0 * share)
}

/// Four significant digits, at most three of them after the point.
fn digits(value: f64) -> String {
    let before = if value >= 1.0 { value.log10().floor() as usize + 1 } else { 1 };
    format!("{value:.*}", 4_usize.saturating_sub(before).min(3))
}

/// A tenth at or below the lowest value of the curves.
fn lowest(layers: &[Layer]) -> f64 {
    let values = layers.iter().flat_map(|layer| match layer {
        Layer::Curve { points, .. } => points.iter().map(|point| point.1).filter(|value| value.is_finite()).collect(),
        _ => Vec::new(),
    });
    (values.fold(0.9, f64::min) * 10.0 - 1e-9).floor().max(0.0) / 10.0
}

/// First target of the stretch of `steps` targets in a row with the largest sum of absolute errors.
fn worst(scored: &[&Scored], steps: usize) -> usize {
    let mut worst = (0.0, scored.first().map_or(0, |scored| scored.target));
    let (mut sum, mut begin) = (0.0, 0);
    let error = |scored: &Scored| (scored.value - scored.forecast.median).abs();
    for last in scored {
        sum += error(last);
        while scored[begin].target + steps <= last.target {
            sum -= error(scored[begin]);
            begin += 1;
        }
        if sum > worst.0 {
            worst = (sum, (last.target + 1).saturating_sub(steps).max(scored[0].target));
        }
    }
    worst.1
}
