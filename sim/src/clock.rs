//! A clock that runs faster than the wall clock, from a chosen instant.

use runtime::{Clock, SharedClock};
use schemas::EpochMs;

/// Simulated time: `origin + (wall − wall at start) × speed`.
pub struct SpeedClock {
    wall: SharedClock,
    wall_start_ms: EpochMs,
    origin_ms: EpochMs,
    speed: f64,
}

impl SpeedClock {
    /// Starts at `origin_ms` now and runs `speed` times as fast as `wall`.
    pub fn new(wall: SharedClock, origin_ms: EpochMs, speed: f64) -> Self {
        let wall_start_ms = wall.now_ms();
        SpeedClock { wall, wall_start_ms, origin_ms, speed }
    }
}

impl Clock for SpeedClock {
    fn now_ms(&self) -> EpochMs {
        let elapsed_ms = (self.wall.now_ms() - self.wall_start_ms) as f64;
        self.origin_ms + (elapsed_ms * self.speed) as EpochMs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::ManualClock;
    use std::sync::Arc;

    #[test]
    fn a_minute_at_sixty_is_an_hour() {
        let wall = Arc::new(ManualClock::new(5_000));
        let clock = SpeedClock::new(wall.clone(), 1_000_000, 60.0);
        assert_eq!(clock.now_ms(), 1_000_000);
        wall.advance(60_000);
        assert_eq!(clock.now_ms(), 1_000_000 + 3_600_000);
    }
}
