//! One vehicle: trips back and forth by a timetable, delays, dwelling at stops.
//!
//! The delay is not a number of its own: it is where the vehicle is against where its timetable says it should be,
//! so `dl`, position, stop events and scheduled times agree, and what a model learns from one holds for the others.
//! It wanders because the speed does (an Ornstein–Uhlenbeck walk, rush hours slow everybody down) and returns to the
//! mean because drivers catch up when late, hold at stops when early, and the turnaround has slack.

use super::network::Network;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use schemas::EpochMs;

/// Timetable speed from end to end, stops included, m/s.
const TIMETABLE_MPS: f64 = 5.5;
/// What a driver drives at between stops on a free road, m/s.
const CRUISE_MPS: f64 = 9.0;
/// Share of the speed that a full rush hour takes away.
const RUSH_SLOWDOWN: f64 = 0.3;
/// Standard deviation of the traffic walk, share of the speed.
const TRAFFIC_SD: f64 = 0.12;
/// Time in which the traffic walk forgets, seconds.
const TRAFFIC_MEMORY_S: f64 = 300.0;
/// A driver does not leave a stop earlier than this before the timetable, seconds.
const EARLY_S: f64 = 20.0;
/// Pause that the timetable has between trips, ms.
const TURNAROUND_MS: i64 = 240_000;
/// A trip that would begin later than this is given up for one that begins now, ms.
const GIVE_UP_MS: i64 = 900_000;
/// Braking and acceleration, m/s².
const BRAKE_MPS2: f64 = 1.2;
const ACCELERATE_MPS2: f64 = 1.0;

/// What a vehicle reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    Vp,
    Due,
    Arr,
    Ars,
    Doo,
    Doc,
    Pde,
    Dep,
    Pas,
}

impl Event {
    pub(super) fn name(self) -> &'static str {
        match self {
            Event::Vp => "VP",
            Event::Due => "DUE",
            Event::Arr => "ARR",
            Event::Ars => "ARS",
            Event::Doo => "DOO",
            Event::Doc => "DOC",
            Event::Pde => "PDE",
            Event::Dep => "DEP",
            Event::Pas => "PAS",
        }
    }
}

/// An event with the vehicle's state at it; several of one second differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) event: Event,
    /// Stop of the trip that it is about; a position between stops has none.
    pub(super) stop: Option<usize>,
    /// Next stop of the trip; past the last one the topic says `EOL`.
    pub(super) next_stop: usize,
    pub(super) doors_open: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// Does not report.
    Depot,
    /// At the first stop, before the departure of its trip.
    Layover,
    Driving,
    /// At stop `next_stop` with doors open, until.
    Dwelling(EpochMs),
}

/// The world around a vehicle during a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) now_ms: EpochMs,
    pub(super) elapsed_s: f64,
    /// 0 on an empty road, 1 at the height of the rush hour.
    pub(super) rush: f64,
}

/// A vehicle on its route.
#[derive(Debug)]
pub(super) struct Vehicle {
    pub(super) operator: u32,
    pub(super) number: u32,
    pub(super) route: usize,
    pub(super) direction: u8,
    /// Departure of this trip by the timetable, a whole minute.
    pub(super) trip_start_ms: EpochMs,
    pub(super) along_m: f64,
    pub(super) speed_mps: f64,
    pub(super) acceleration: f64,
    /// Vehicle clock minus the time of its messages' arrival.
    pub(super) skew_ms: i64,
    pub(super) trip: u32,
    /// Number of the next stop of the trip, from 0.
    next_stop: usize,
    /// How this driver differs from others, share of the speed.
    tendency: f64,
    /// Where the traffic walk is, share of the speed.
    traffic: f64,
    phase: Phase,
    due_sent: bool,
    arr_sent: bool,
    /// Decided when the stop is near.
    stops_here: bool,
}

impl Vehicle {
    /// A vehicle in the depot.
    pub(super) fn new(n: usize, network: &Network, rng: &mut ChaCha8Rng) -> Self {
        let skew_ms = -(receive_delay_s(rng.random()) * 1000.0) as i64;
        Vehicle {
            operator: [12, 18, 22, 40][n % 4],
            number: 100 + n as u32,
            route: n % network.routes.len(),
            direction: if n.is_multiple_of(2) { 1 } else { 2 },
            trip_start_ms: 0,
            along_m: 0.0,
            speed_mps: 0.0,
            acceleration: 0.0,
            skew_ms,
            trip: n as u32 * 100,
            next_stop: 0,
            tendency: rng.random_range(-0.08..0.08),
            traffic: 0.0,
            phase: Phase::Depot,
            due_sent: false,
            arr_sent: false,
            stops_here: false,
        }
    }

    pub(super) fn in_depot(&self) -> bool {
        self.phase == Phase::Depot
    }

    /// Before its trip begins, a vehicle publishes as `upcoming`.
    pub(super) fn is_upcoming(&self) -> bool {
        self.phase == Phase::Layover
    }

    /// Stops reporting, wherever it is.
    pub(super) fn sign_off(&mut self) {
        self.phase = Phase::Depot;
    }

    /// Begins service at a terminus: its first trip leaves within a few minutes.
    pub(super) fn sign_on(&mut self, now_ms: EpochMs, rng: &mut ChaCha8Rng) {
        self.prepare_trip(now_ms + rng.random_range(0..120_000));
    }

    /// Puts it in the middle of a trip, as if it had been driving before the simulation began.
    pub(super) fn place(&mut self, network: &Network, now_ms: EpochMs, rng: &mut ChaCha8Rng) {
        let route = &network.routes[self.route];
        self.along_m = rng.random_range(0.0..route.length_m() * 0.9);
        let late_s = rng.random_range(-10.0..90.0);
        self.trip_start_ms = minute_before(now_ms - ((self.along_m / TIMETABLE_MPS + late_s) * 1000.0) as i64);
        let ahead = (1..route.stops.len()).find(|&n| route.stop_at_m(self.direction, n) > self.along_m);
        self.next_stop = ahead.unwrap_or(route.stops.len() - 1);
        self.speed_mps = 0.0;
        self.phase = Phase::Driving;
        self.approach_next();
    }

    /// Seconds from departure to stop `n` by the timetable.
    pub(super) fn timetable_s(&self, network: &Network, n: usize) -> f64 {
        network.routes[self.route].stop_at_m(self.direction, n) / TIMETABLE_MPS
    }

    /// Seconds behind the timetable (positive = late); HFP's `dl` has the other sign.
    pub(super) fn late_s(&self, now_ms: EpochMs) -> f64 {
        (now_ms - self.trip_start_ms) as f64 / 1000.0 - self.along_m / TIMETABLE_MPS
    }

    /// Moves on; what it reports, in order. Nothing in the depot.
    pub(super) fn step(&mut self, network: &Network, step: Step, rng: &mut ChaCha8Rng) -> Vec<Report> {
        self.wander(step.elapsed_s, rng);
        let mut reports = match self.phase {
            Phase::Depot => return Vec::new(),
            Phase::Layover if step.now_ms >= self.trip_start_ms => self.leave(0),
            Phase::Layover => Vec::new(),
            Phase::Driving => self.drive(network, step, rng),
            Phase::Dwelling(until_ms) if self.may_leave(network, step.now_ms, until_ms) => {
                self.close_doors(network, step.now_ms)
            }
            Phase::Dwelling(_) => Vec::new(),
        };
        let here = matches!(self.phase, Phase::Dwelling(_)).then_some(self.next_stop);
        // At the last stop there is no next one.
        let last = here.is_some_and(|n| n + 1 == network.routes[self.route].stops.len());
        let next_stop = self.next_stop + usize::from(last);
        reports.push(Report { event: Event::Vp, stop: here, next_stop, doors_open: here.is_some() });
        reports
    }

    fn wander(&mut self, elapsed_s: f64, rng: &mut ChaCha8Rng) {
        let kept = (-elapsed_s / TRAFFIC_MEMORY_S).exp();
        let noise: f64 = StandardNormal.sample(rng);
        self.traffic = self.traffic * kept + TRAFFIC_SD * (1.0 - kept * kept).sqrt() * noise;
    }

    fn report(&self, event: Event, doors_open: bool) -> Report {
        Report { event, stop: Some(self.next_stop), next_stop: self.next_stop, doors_open }
    }

    fn drive(&mut self, network: &Network, step: Step, rng: &mut ChaCha8Rng) -> Vec<Report> {
        let route = &network.routes[self.route];
        let last = self.next_stop + 1 == route.stops.len();
        let stop_m = route.stop_at_m(self.direction, self.next_stop);
        let mut reports = Vec::new();
        if !self.due_sent && stop_m - self.along_m < 60.0 {
            self.due_sent = true;
            // Nobody waits at every fourth stop; one that is early stops all the same.
            self.stops_here = last || self.late_s(step.now_ms) < -EARLY_S || rng.random_bool(0.75);
            reports.push(self.report(Event::Due, false));
        }
        self.accelerate(stop_m, step);
        if !self.arr_sent && self.stops_here && stop_m - self.along_m < 20.0 {
            self.arr_sent = true;
            reports.push(self.report(Event::Arr, false));
        }
        if self.due_sent && self.stops_here && stop_m - self.along_m < 1.0 {
            self.along_m = stop_m;
            self.speed_mps = 0.0;
            reports.extend([self.report(Event::Ars, false), self.report(Event::Doo, true)]);
            // Now and then something takes long.
            let dwell_s =
                if rng.random_bool(0.01) { rng.random_range(60.0..180.0) } else { rng.random_range(8.0..32.0) };
            self.phase = Phase::Dwelling(step.now_ms + (dwell_s * 1000.0) as i64);
        } else if self.due_sent && self.along_m >= stop_m {
            reports.push(self.report(Event::Pas, false));
            self.next_stop += 1;
            self.approach_next();
        }
        reports
    }

    /// Speed and place after a step; never past a stop at which it stops.
    fn accelerate(&mut self, stop_m: f64, step: Step) {
        let catch_up = (self.late_s(step.now_ms) / 600.0).clamp(0.0, 0.2);
        let free_mps = CRUISE_MPS * (1.0 + self.tendency + self.traffic + catch_up) * (1.0 - RUSH_SLOWDOWN * step.rush);
        let left_m = (stop_m - self.along_m).max(0.0);
        let braking_mps = if self.stops_here { (2.0 * BRAKE_MPS2 * left_m).sqrt().max(0.5) } else { f64::INFINITY };
        let wanted_mps = free_mps.clamp(2.0, 15.0).min(braking_mps);
        let before_mps = self.speed_mps;
        let change =
            (wanted_mps - before_mps).clamp(-2.0 * BRAKE_MPS2 * step.elapsed_s, ACCELERATE_MPS2 * step.elapsed_s);
        self.speed_mps = before_mps + change;
        self.acceleration = if step.elapsed_s > 0.0 { change / step.elapsed_s } else { 0.0 };
        self.along_m += self.speed_mps * step.elapsed_s;
        // Before the decision at 60 m, a long step must not jump over the stop.
        if self.stops_here || !self.due_sent {
            self.along_m = self.along_m.min(stop_m);
        }
    }

    fn may_leave(&self, network: &Network, now_ms: EpochMs, until_ms: EpochMs) -> bool {
        let last = self.next_stop + 1 == network.routes[self.route].stops.len();
        now_ms >= until_ms && (last || self.late_s(now_ms) >= -EARLY_S)
    }

    fn close_doors(&mut self, network: &Network, now_ms: EpochMs) -> Vec<Report> {
        let stop = self.next_stop;
        let mut reports = vec![self.report(Event::Doc, false)];
        if stop + 1 < network.routes[self.route].stops.len() {
            reports.extend(self.leave(stop));
        } else {
            self.turn_round(network, now_ms);
        }
        reports
    }

    fn leave(&mut self, stop: usize) -> Vec<Report> {
        self.phase = Phase::Driving;
        self.next_stop = stop + 1;
        self.approach_next();
        let ready = Report { event: Event::Pde, stop: Some(stop), next_stop: stop, doors_open: false };
        vec![ready, Report { event: Event::Dep, next_stop: stop + 1, ..ready }]
    }

    fn approach_next(&mut self) {
        self.due_sent = false;
        self.arr_sent = false;
        self.stops_here = false;
    }

    fn turn_round(&mut self, network: &Network, now_ms: EpochMs) {
        let end_s = self.timetable_s(network, usize::MAX);
        let planned_ms = self.trip_start_ms + (end_s * 1000.0) as i64 + TURNAROUND_MS;
        let start_ms = if now_ms - planned_ms > GIVE_UP_MS { now_ms } else { planned_ms };
        self.direction = 3 - self.direction;
        self.prepare_trip(start_ms);
    }

    /// Waits at the first stop for a trip of the first whole minute from `start_ms` on.
    fn prepare_trip(&mut self, start_ms: EpochMs) {
        self.trip_start_ms = minute_before(start_ms + 59_999);
        self.trip += 1;
        self.along_m = 0.0;
        self.speed_mps = 0.0;
        self.acceleration = 0.0;
        self.next_stop = 0;
        self.phase = Phase::Layover;
    }
}

fn minute_before(at_ms: EpochMs) -> EpochMs {
    at_ms - at_ms.rem_euclid(60_000)
}

/// Receive time minus device time at quantile `u` of [0, 1), seconds: measured on a morning of the real feed (5,000
/// messages of 1,460 vehicles), linear between the points. Some clocks are ahead.
fn receive_delay_s(u: f64) -> f64 {
    const POINTS: [(f64, f64); 12] = [
        (0.0, -4.36),
        (0.01, -0.96),
        (0.05, 0.14),
        (0.25, 0.42),
        (0.5, 0.68),
        (0.75, 0.9),
        (0.9, 1.08),
        (0.95, 1.74),
        (0.97, 3.6),
        (0.98, 8.5),
        (0.99, 37.7),
        (1.0, 54.0),
    ];
    let after = POINTS.iter().position(|(q, _)| *q > u).unwrap_or(POINTS.len() - 1).max(1);
    let ((q0, d0), (q1, d1)) = (POINTS[after - 1], POINTS[after]);
    d0 + (d1 - d0) * ((u - q0) / (q1 - q0)).clamp(0.0, 1.0)
}
