//! The built-in standing queries; their SQL is in `queries/`, their expected rows in `tests/golden/`.

use crate::config::{OnNull, Query, Sink};

/// Service for which [`delay_features`] makes requests.
const DELAY_SERVICE: &str = "delay";

/// The features of `delay.onnx` in the order of its input tensor. Part of the model's contract.
pub const DELAY_FEATURES: [&str; 16] = [
    "deviation_mean_s",
    "deviation_min_s",
    "deviation_max_s",
    "deviation_last_s",
    "rows",
    "speed_mean_mps",
    "speed_max_mps",
    "stopped_fraction",
    "doors_open_fraction",
    "at_stop_fraction",
    "distance_m",
    "elapsed_s",
    "hour_sin",
    "hour_cos",
    "weekday_sin",
    "weekday_cos",
];

/// Built-in queries; those that make requests only where their service exists.
pub fn built_in(services: &[String]) -> Vec<Query> {
    let mut queries = vec![line_speed(), fleet()];
    if services.iter().any(|s| s == DELAY_SERVICE) {
        queries.push(delay_features());
    }
    queries
}

/// Speed and punctuality of each route and direction, by the minute.
pub fn line_speed() -> Query {
    aggregates("line_speed", include_str!("queries/line_speed.sql"))
}

/// Vehicles and messages of each operator and mode, by the minute.
pub fn fleet() -> Query {
    aggregates("fleet", include_str!("queries/fleet.sql"))
}

/// Recent state of each vehicle on a trip, as a request for its delay at the next stop.
pub fn delay_features() -> Query {
    Query {
        sink: Sink::Predict(DELAY_SERVICE.to_owned()),
        features: DELAY_FEATURES.map(str::to_owned).to_vec(),
        ..aggregates("delay_features", include_str!("queries/delay_features.sql"))
    }
}

fn aggregates(name: &str, sql: &str) -> Query {
    Query {
        name: name.to_owned(),
        sql: sql.to_owned(),
        sink: Sink::Aggregates,
        input: "features".to_owned(),
        features: Vec::new(),
        on_null: OnNull::Skip,
    }
}
