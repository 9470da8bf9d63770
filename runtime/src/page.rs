//! Pages that a command writes for a person: one file, charts as inline SVG, nothing loaded and no script.
//!
//! Purpose: `barista simulate --html` and `barista backtest --html` look alike and thin long curves the same way.
//!
//! Invariants: text is escaped; no NaN or infinity is drawn, it is a gap; a chart's size is bounded by its width in
//! pixels and not by the length of its curves, of which every extreme stays to be seen.
//!
//! Left out: zooming, and any value below zero.

use std::fmt::Write as _;

/// Width of a chart, pixels; the browser scales it.
const WIDTH: f64 = 960.0;
const LEFT: f64 = 46.0;
const TOP: f64 = 4.0;
const BOTTOM: f64 = 18.0;
/// How many colours there are: curve `i` takes `i % COLORS`.
pub const COLORS: usize = 10;

const STYLE: &str = "\
:root{color-scheme:light dark;--bg:#fff;--fg:#111;--dim:#555;--line:#ddd;--good:#047857;--bad:#b91c1c;\
--c0:#2563eb;--c1:#d97706;--c2:#059669;--c3:#dc2626;--c4:#7c3aed;--c5:#0891b2;--c6:#be185d;--c7:#4d7c0f;--c8:#78716c;--c9:#a16207}\
@media(prefers-color-scheme:dark){:root{--bg:#111;--fg:#eee;--dim:#aaa;--line:#333;--good:#34d399;--bad:#f87171;\
--c0:#60a5fa;--c1:#fbbf24;--c2:#34d399;--c3:#f87171;--c4:#a78bfa;--c5:#22d3ee;--c6:#f472b6;--c7:#a3e635;--c8:#a8a29e;--c9:#facc15}}\
body{font:15px/1.5 system-ui,sans-serif;max-width:1020px;margin:2em auto;padding:0 1em;color:var(--fg);background:var(--bg)}\
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}.wide{overflow-x:auto}.wide table{font-size:13px}\
.wide td:first-child{white-space:nowrap}th[colspan]{text-align:center}thead tr+tr th:first-child{text-align:right}\
th,td{padding:.25em .5em;text-align:right;border-bottom:1px solid var(--line)}th:first-child,td:first-child{text-align:left}\
.good{color:var(--good)}.bad{color:var(--bad)}.dim{color:var(--dim)}h1{margin-bottom:.2em}h2{margin:2em 0 .2em}\
figure{margin:0 0 1em}figcaption{font-size:13px;margin-top:.6em}figcaption b{margin-right:1em}\
figcaption span{margin-right:.9em;white-space:nowrap}i{display:inline-block;width:.8em;height:.8em;margin-right:.3em;\
background:var(--c);opacity:var(--o,1)}svg{width:100%;height:auto;display:block}text{font-size:11px;fill:var(--dim)}\
.grid{stroke:var(--line)}.curve{fill:none;stroke:var(--c);stroke-width:1.2;stroke-linejoin:round;vector-effect:non-scaling-stroke}\
.band{fill:var(--c);stroke:none;opacity:var(--o)}.level{stroke:var(--c3);stroke-dasharray:4 3}";

/// A whole page. `title` is text, `body` is HTML.
pub fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{}</title><style>{STYLE}</style></head><body>{body}</body></html>\n",
        escape(title)
    )
}

/// Text for an element or an attribute in double quotes.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Something in a chart. `x` ascends; a value that is no number is a gap.
#[derive(Debug, Clone)]
pub enum Layer {
    /// A curve.
    Curve {
        /// For the legend.
        name: String,
        /// Which colour.
        color: usize,
        /// Where.
        points: Vec<(f64, f64)>,
    },
    /// The area between two curves.
    Band {
        /// For the legend.
        name: String,
        /// Which colour.
        color: usize,
        /// From 0 (not seen) to 1.
        opacity: f64,
        /// `x`, low, high.
        points: Vec<(f64, f64, f64)>,
    },
    /// A stretch of time from `x` to `x`, over the whole height.
    Span {
        /// For the legend; nothing there if empty.
        name: String,
        /// Which colour.
        color: usize,
        /// Begin and end.
        x: (f64, f64),
    },
    /// A horizontal line.
    Level(f64),
}

/// Curves over the same time.
#[derive(Debug, Clone)]
pub struct Chart {
    /// Before the legend; text.
    pub caption: String,
    /// What lies at the left and the right edge.
    pub x: (f64, f64),
    /// Labels of the x axis.
    pub ticks: Vec<(f64, String)>,
    /// What lies at the lower edge: 0 except where the curves never come near it.
    pub bottom: f64,
    /// What lies at the upper edge; the largest value if `None`.
    pub top: Option<f64>,
    /// Height, pixels.
    pub height: f64,
    /// What to draw, the lowest first.
    pub layers: Vec<Layer>,
}

impl Chart {
    /// The chart with its legend, as HTML.
    pub fn figure(&self) -> String {
        let top = self.top.unwrap_or_else(|| self.highest()).max(self.bottom + 1e-9);
        let axes = Axes { x: self.x, y: (self.bottom, top), height: self.height };
        let mut drawing = String::new();
        for value in round_values(self.bottom, top) {
            let y = axes.y_at(value);
            let _ = write!(
                drawing,
                "<line class=grid x1={LEFT} x2={WIDTH} y1={y:.1} y2={y:.1} /><text x={:.0} y={:.1} text-anchor=end>{}</text>",
                LEFT - 6.0,
                y + 4.0,
                number(value)
            );
        }
        for (x, label) in self.ticks.iter().filter(|(x, _)| (self.x.0..=self.x.1).contains(x)) {
            let at = axes.x_at(*x);
            let _ =
                write!(drawing, "<line class=grid x1={at:.1} x2={at:.1} y1={TOP} y2={:.1} />", self.height - BOTTOM);
            // A label at the right edge would be cut.
            if at + 3.0 + 8.0 * label.chars().count() as f64 <= WIDTH {
                let _ = write!(drawing, "<text x={:.1} y={:.1}>{}</text>", at + 3.0, self.height - 4.0, escape(label));
            }
        }
        let mut legend = String::new();
        for layer in &self.layers {
            drawing.push_str(&axes.draw(layer));
            legend.push_str(&layer.legend());
        }
        format!(
            "<figure><figcaption>{}{legend}</figcaption><svg viewBox=\"0 0 {WIDTH} {}\" role=img>{drawing}</svg></figure>",
            if self.caption.is_empty() { String::new() } else { format!("<b>{}</b>", escape(&self.caption)) },
            self.height
        )
    }

    fn highest(&self) -> f64 {
        let of = |layer: &Layer| -> f64 {
            match layer {
                Layer::Curve { points, .. } => largest(points.iter().map(|point| point.1)),
                Layer::Band { points, .. } => largest(points.iter().map(|point| point.2)),
                Layer::Level(value) => *value,
                Layer::Span { .. } => 0.0,
            }
        };
        largest(self.layers.iter().map(of)) * 1.05
    }
}

impl Layer {
    fn legend(&self) -> String {
        let (name, color, opacity) = match self {
            Layer::Curve { name, color, .. } => (name, color, 1.0),
            Layer::Band { name, color, opacity, .. } => (name, color, *opacity),
            Layer::Span { name, color, .. } => (name, color, SPAN_OPACITY),
            Layer::Level(_) => return String::new(),
        };
        if name.is_empty() {
            return String::new();
        }
        format!("<span><i style=\"--c:var(--c{});--o:{opacity}\"></i>{}</span>", color % COLORS, escape(name))
    }
}

const SPAN_OPACITY: f64 = 0.15;

fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.filter(|value| value.is_finite()).fold(0.0, f64::max)
}

/// From values to pixels.
struct Axes {
    x: (f64, f64),
    y: (f64, f64),
    height: f64,
}

impl Axes {
    fn x_at(&self, x: f64) -> f64 {
        let part = (x - self.x.0) / (self.x.1 - self.x.0).max(1e-9);
        LEFT + (WIDTH - LEFT) * part
    }

    fn y_at(&self, y: f64) -> f64 {
        let part = ((y - self.y.0) / (self.y.1 - self.y.0)).clamp(0.0, 1.0);
        (self.height - BOTTOM) - (self.height - BOTTOM - TOP) * part
    }

    fn draw(&self, layer: &Layer) -> String {
        match layer {
            Layer::Curve { color, points, .. } => self.curve(points, color % COLORS),
            Layer::Band { color, opacity, points, .. } => self.band(points, color % COLORS, *opacity),
            Layer::Span { color, x, .. } => {
                let (from, to) = (self.x_at(x.0.max(self.x.0)), self.x_at(x.1.min(self.x.1)));
                format!(
                    "<rect class=band style=\"--c:var(--c{});--o:{SPAN_OPACITY}\" x={from:.1} y={TOP} width={:.1} height={:.1} />",
                    color % COLORS,
                    (to - from).max(0.5),
                    self.height - BOTTOM - TOP
                )
            }
            Layer::Level(value) => {
                let y = self.y_at(*value);
                format!("<line class=level x1={LEFT} x2={WIDTH} y1={y:.1} y2={y:.1} />")
            }
        }
    }

    /// Of each pixel's points the lowest and the highest, in their order.
    fn curve(&self, points: &[(f64, f64)], color: usize) -> String {
        let mut path = Path::default();
        for piece in points.split(|point| !point.1.is_finite()) {
            path.lift();
            for pixel in piece.chunk_by(|a, b| self.x_at(a.0).floor() == self.x_at(b.0).floor()) {
                let extremes = extremes(pixel);
                for (x, y) in &extremes[..if extremes[0] == extremes[1] { 1 } else { 2 }] {
                    path.to(self.x_at(*x), self.y_at(*y));
                }
            }
            if let [lone] = piece {
                // A lone value between gaps would have no length.
                path.to(self.x_at(lone.0) + 1.0, self.y_at(lone.1));
            }
        }
        format!("<path class=curve transform=scale(.1) style=\"--c:var(--c{color})\" d=\"{}\"/>", path.text)
    }

    /// Of each pixel's points the lowest low and the highest high.
    fn band(&self, points: &[(f64, f64, f64)], color: usize, opacity: f64) -> String {
        let mut path = Path::default();
        for piece in points.split(|point| !(point.1.is_finite() && point.2.is_finite())) {
            let edges: Vec<(f64, f64, f64)> = piece
                .chunk_by(|a, b| self.x_at(a.0).floor() == self.x_at(b.0).floor())
                .map(|pixel| {
                    let low = pixel.iter().map(|point| point.1).fold(f64::INFINITY, f64::min);
                    let high = pixel.iter().map(|point| point.2).fold(f64::NEG_INFINITY, f64::max);
                    (self.x_at(pixel[0].0), self.y_at(low), self.y_at(high))
                })
                .collect();
            path.lift();
            edges.iter().for_each(|edge| path.to(edge.0, edge.2));
            edges.iter().rev().for_each(|edge| path.to(edge.0, edge.1));
        }
        format!(
            "<path class=band transform=scale(.1) style=\"--c:var(--c{color});--o:{opacity}\" d=\"{}\"/>",
            path.text
        )
    }
}

/// The `d` of a path in whole tenths of a pixel, each point relative to the one before: half as long as with absolute
/// places, and without a sum of rounding errors.
#[derive(Default)]
struct Path {
    text: String,
    at: (i64, i64),
    down: bool,
}

impl Path {
    /// The next point begins a new piece.
    fn lift(&mut self) {
        self.down = false;
    }

    fn to(&mut self, x: f64, y: f64) {
        let next = ((x * 10.0).round() as i64, (y * 10.0).round() as i64);
        if self.down {
            let (dx, dy) = (next.0 - self.at.0, next.1 - self.at.1);
            let sign = if dy < 0 { "" } else { " " };
            let _ = write!(self.text, "l{dx}{sign}{dy}");
        } else {
            let _ = write!(self.text, "M{} {}", next.0, next.1);
        }
        (self.at, self.down) = (next, true);
    }
}

/// The lowest and the highest point in the order of `x`.
fn extremes(points: &[(f64, f64)]) -> [(f64, f64); 2] {
    let (mut low, mut high) = (0, 0);
    for (i, point) in points.iter().enumerate() {
        if point.1 < points[low].1 {
            low = i;
        }
        if point.1 > points[high].1 {
            high = i;
        }
    }
    [points[low.min(high)], points[low.max(high)]]
}

/// Up to five round numbers between the two, 1, 2 or 5 times a power of ten apart.
fn round_values(from: f64, to: f64) -> Vec<f64> {
    let least = (to - from) / 5.0;
    let power = 10_f64.powf(least.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|digit| digit * power).find(|step| *step >= least);
    let step = step.unwrap_or(10.0 * power);
    let first = (from / step - 1e-9).ceil();
    (0..6).map(|k| (first + f64::from(k)) * step).filter(|value| *value <= to).collect()
}

/// A value of an axis in few letters.
pub fn number(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        size if size >= 1e9 => (value / 1e9, " G"),
        size if size >= 1e6 => (value / 1e6, " M"),
        size if size >= 1e4 => (value / 1e3, " k"),
        _ => (value, ""),
    };
    let text = match scaled.abs() {
        size if size >= 100.0 || size == 0.0 => format!("{scaled:.0}"),
        size if size >= 1.0 => format!("{scaled:.1}"),
        size if size >= 0.01 => format!("{scaled:.2}"),
        _ => format!("{scaled:.1e}"),
    };
    let text = if text.contains('.') && !text.contains('e') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    };
    format!("{text}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chart(points: Vec<(f64, f64)>) -> Chart {
        let band = points.iter().map(|&(x, y)| (x, y * 0.9, y * 1.1)).collect();
        Chart {
            caption: "load <b>".to_owned(),
            x: (0.0, points.last().map_or(1.0, |point| point.0)),
            ticks: vec![(0.0, "day \"0\"".to_owned())],
            bottom: 0.0,
            top: None,
            height: 150.0,
            layers: vec![
                Layer::Span { name: "shift".to_owned(), color: 3, x: (1.0, 2.0) },
                Layer::Band { name: "band".to_owned(), color: 11, opacity: 0.3, points: band },
                Layer::Curve { name: "a & b".to_owned(), color: 0, points },
                Layer::Level(1.0),
            ],
        }
    }

    #[test]
    fn text_is_escaped() {
        let figure = chart(vec![(0.0, 1.0), (1.0, 2.0)]).figure();
        assert!(
            figure.contains("load &lt;b&gt;") && figure.contains("a &amp; b") && figure.contains("day &quot;0&quot;")
        );
        assert!(page("<x>", "").contains("<title>&lt;x&gt;</title>"));
    }

    #[test]
    fn a_lone_peak_among_a_hundred_thousand_is_drawn() {
        let mut points: Vec<(f64, f64)> = (0..100_000).map(|i| (f64::from(i), 10.0)).collect();
        points[54_321].1 = 1000.0;
        let chart = Chart { layers: chart(points).layers.split_off(2), ..chart(vec![(99_999.0, 0.0)]) };
        let figure = chart.figure();
        // From the level of 10 up to 1000 of 1050 on 128 pixels, and down again.
        let up = (132.0 - 128.0 * 10.0 / 1050.0 - (132.0 - 128.0 / 1.05)) * 10.0;
        assert!(figure.contains(&format!("-{up:.0}l")) && figure.contains(&format!(" {up:.0}l")), "{up:.0}");
        assert!(figure.len() < 60_000, "{}", figure.len());
    }

    #[test]
    fn an_unknown_value_is_a_gap() {
        let points = vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 1.0), (3.0, 1.0)];
        let figure = chart(points).figure();
        let curve = figure.rsplit("class=curve").next().unwrap_or_default();
        assert_eq!(curve.matches('M').count(), 2, "{curve}");
    }

    #[test]
    fn round_numbers_are_read_easily() {
        assert_eq!(round_values(0.0, 1.0), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(round_values(0.0, 38_000.0), [0.0, 10_000.0, 20_000.0, 30_000.0]);
        let texts: Vec<String> = [0.0, 0.6000000000000001, 2.5, 120.0, 30_000.0, 2.5e6].map(number).into();
        assert_eq!(texts, ["0", "0.6", "2.5", "120", "30 k", "2.5 M"]);
    }

    proptest! {
        #[test]
        fn whatever_comes_no_number_is_broken_and_the_size_is_bounded(
            values in prop::collection::vec(prop_oneof![9 => 0.0_f64..1e12, 1 => Just(f64::NAN), 1 => Just(f64::INFINITY)], 0..5000)
        ) {
            let points = values.iter().enumerate().map(|(i, value)| (i as f64, *value)).collect();
            let figure = chart(points).figure();
            prop_assert!(!figure.contains("NaN") && !figure.contains("inf"));
            prop_assert!(figure.len() < 200_000);
        }
    }
}
