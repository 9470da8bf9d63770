//! What the SQL of a query may say beyond stock DataFusion: window functions, quantiles, local time.

pub mod local_time;
pub mod quantile;
pub mod session;
pub mod shorthand;
pub mod sketch;
pub mod trigonometry;
pub mod window_fn;

pub use session::{Stream, session};
