//! Forecasts of request rates, with quantiles, learned online from every interval.
//!
//! Purpose: role `forecaster` reads `workload.observed` and writes `workload.forecast`; its pure core ([`Model`]) and
//! its measurement ([`backtest`]) are also used by the simulator and the command line.
//!
//! The core, from the outside in: [`model`] takes samples and gives forecasts; each direct horizon combines
//! [`expert`]s by their recent losses (`combine`) and puts quantiles around them (`quantile`); `history` is what all
//! share. [`service`] is the only part with I/O.
//!
//! Invariants:
//! - The core reads no clock and no configuration of its own; the same samples give the same forecasts, bit for bit,
//!   also over a restart.
//! - No NaN leaves; forecasts are not negative; quantiles do not cross; time and memory a series are bounded.
//! - An offset is committed only after the state that contains its sample is written.
//!
//! Left out: topics that feed exogenous inputs; the core takes them ([`Model::observe_with`]).

mod bits;
mod calendar;
mod combine;
mod covariates;
mod features;
mod forecast;
mod guard;
mod history;
mod horizon;
mod peak;
mod portfolio;
mod profile;
mod quantile;
mod ring;
mod score;
mod series;
mod shift;
mod work;

pub mod backtest;
pub mod config;
pub mod expert;
pub mod metrics;
pub mod model;
pub mod service;

pub use calendar::{CalendarConfig, DAY_MS};
pub use config::Config;
pub use expert::ExpertKind;
pub use forecast::{Forecast, StepForecast};
pub use model::{Model, ModelConfig, Observation, Rejection};
pub use peak::PeakForecast;
pub use score::RecentError;
pub use service::{Error, run};
