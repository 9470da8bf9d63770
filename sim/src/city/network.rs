//! The made-up network: routes of stops around a centre.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

const ROUTES: usize = 12;
const STOPS: usize = 16;
/// Degrees of latitude in a metre.
pub(super) const DEGREES_PER_METRE: f64 = 1.0 / 111_320.0;
/// Centre of the city that does not exist, degrees.
const CENTRE: (f64, f64) = (60.0, 24.0);

/// Places where vehicles go.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) routes: Vec<Route>,
}

/// One line with its stops in both directions.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) id: String,
    pub(super) label: String,
    pub(super) mode: &'static str,
    pub(super) headsigns: [String; 2],
    pub(super) stops: Vec<Stop>,
}

#[derive(Debug)]
pub(super) struct Stop {
    pub(super) id: u32,
    /// Metres from the first stop.
    pub(super) at_m: f64,
    pub(super) lat: f64,
    pub(super) lon: f64,
}

impl Network {
    pub(super) fn new(rng: &mut ChaCha8Rng) -> Self {
        const ENDS: [&str; 6] = ["Kääpiönkatu", "Satama", "Pohjoislinna (M)", "Yliopisto", "Ranta", "Länsiväylä"];
        let routes = (0..ROUTES)
            .map(|n| {
                let mode = if n % 4 == 3 { "tram" } else { "bus" };
                let ends = [ENDS[n % ENDS.len()].to_owned(), ENDS[(n + 1 + n / 6) % ENDS.len()].to_owned()];
                Route {
                    // As in the real feed, an id may hold a space.
                    id: if n == 4 { "1004 4".to_owned() } else { format!("{}", 2000 + n) },
                    label: format!("{}", 50 + n),
                    mode,
                    headsigns: ends,
                    stops: stops(n, rng),
                }
            })
            .collect();
        Network { routes }
    }
}

fn stops(route: usize, rng: &mut ChaCha8Rng) -> Vec<Stop> {
    let mut bearing: f64 = rng.random_range(0.0..std::f64::consts::TAU);
    let (mut lat, mut lon, mut at_m) = (CENTRE.0, CENTRE.1, 0.0);
    (0..STOPS)
        .map(|n| {
            if n > 0 {
                let distance_m = rng.random_range(300.0..700.0);
                bearing += rng.random_range(-0.5..0.5);
                at_m += distance_m;
                lat += distance_m * bearing.cos() * DEGREES_PER_METRE;
                lon += distance_m * bearing.sin() * DEGREES_PER_METRE / lat.to_radians().cos();
            }
            Stop { id: (1_000_000 + route * 100 + n) as u32, at_m, lat, lon }
        })
        .collect()
}

impl Route {
    /// Metres from end to end.
    pub(super) fn length_m(&self) -> f64 {
        self.stops.last().map_or(0.0, |s| s.at_m)
    }

    /// Stop number `n` of a trip; direction 2 runs backwards.
    pub(super) fn stop(&self, direction: u8, n: usize) -> &Stop {
        let last = self.stops.len() - 1;
        let n = n.min(last);
        &self.stops[if direction == 1 { n } else { last - n }]
    }

    /// Metres from the begin of a trip to its stop `n`.
    pub(super) fn stop_at_m(&self, direction: u8, n: usize) -> f64 {
        let at = self.stop(direction, n).at_m;
        if direction == 1 { at } else { self.length_m() - at }
    }

    /// Position and heading after `along_m` metres of a trip.
    pub(super) fn position(&self, direction: u8, along_m: f64) -> (f64, f64, f64) {
        let from_first = if direction == 1 { along_m } else { self.length_m() - along_m };
        let next = self.stops.iter().position(|s| s.at_m >= from_first).unwrap_or(self.stops.len() - 1).max(1);
        let (a, b) = (&self.stops[next - 1], &self.stops[next]);
        let share = ((from_first - a.at_m) / (b.at_m - a.at_m)).clamp(0.0, 1.0);
        let (dlat, dlon) = (b.lat - a.lat, b.lon - a.lon);
        let along = (dlon * a.lat.to_radians().cos()).atan2(dlat).to_degrees();
        let heading = if direction == 1 { along } else { along + 180.0 };
        (a.lat + share * dlat, a.lon + share * dlon, heading.rem_euclid(360.0))
    }
}
