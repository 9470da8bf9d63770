//! What nodes measure under load corrects the profiles that are planned with. Pure.
//!
//! Purpose: a node that finds a model slower or faster on its machine than the plan counts on says so
//! (`profile_updates` of `executor.status`); from then on the flavor has a profile of its own.
//!
//! Method: the profile in force, scaled as a whole by measured over planned 95th percentile at the point that was
//! measured. One point tells how fast the machine is; how a model behaves over batches and workers is the model's.
//!
//! Invariants:
//! - Only the flavor of the node that measured changes.
//! - A profile that was sound is sound after it; told twice is as told once.

use crate::model::{Flavor, ServiceProfile};
use schemas::status::ProfileUpdate;

/// A measurement further off than this factor is believed only so far.
const MOST: f64 = 20.0;

/// Takes in what a node of this flavor measured. The factor by which times have changed; `None` where no profile of the
/// service and backend has a point with that batch, or the measurement is no time.
pub fn learn(profiles: &mut Vec<ServiceProfile>, flavor: &Flavor, update: &ProfileUpdate) -> Option<f64> {
    let of_update = |p: &&ServiceProfile| p.service == update.service && p.profile.backend == update.backend;
    let own = profiles.iter().position(|p| of_update(&p) && p.flavor.as_ref() == Some(&flavor.name));
    let mut learned = match own {
        Some(at) => profiles[at].clone(),
        None => profiles.iter().find(|p| of_update(p) && p.flavor.is_none())?.clone(),
    };
    let measured = &update.point;
    let nearest = learned.profile.points.iter().filter(|p| p.batch == measured.batch);
    let known = nearest.min_by_key(|p| (p.workers.abs_diff(measured.workers), p.workers))?;
    // Profiles hold times of a machine of speed 1. The high quantiles of an estimate are the end of a wide range and no
    // spread that was seen: its median is what a measurement is held against, however far it is, and its spread goes.
    let estimated = learned.profile.estimated && measured.p50_ms.is_finite() && measured.p50_ms > 0.0;
    let factor = match estimated {
        true => measured.p50_ms * flavor.speed / known.p50_ms,
        false => measured.p95_ms * flavor.speed / known.p95_ms,
    };
    if !(factor.is_finite() && factor > 0.0) {
        return None;
    }
    let factor = if estimated { factor } else { factor.clamp(1.0 / MOST, MOST) };
    let spread = |high: f64| if high.is_finite() { (high / measured.p50_ms).max(1.0) } else { 1.0 };
    let (to_p95, to_p99) = (spread(measured.p95_ms), spread(measured.p99_ms));
    for point in &mut learned.profile.points {
        point.p50_ms *= factor;
        point.p95_ms = if estimated { point.p50_ms * to_p95 } else { point.p95_ms * factor };
        point.p99_ms = if estimated { point.p50_ms * to_p99.max(to_p95) } else { point.p99_ms * factor };
        point.rps /= factor;
    }
    // They were measured on another machine.
    learned.profile.distributions.clear();
    learned.profile.estimated = false;
    learned.profile.host = format!("measured under load on {}", flavor.name);
    learned.flavor = Some(flavor.name.clone());
    match own {
        Some(at) => profiles[at] = learned,
        None => profiles.push(learned),
    }
    Some(factor)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::testing::{flavor, point, profile};
    use proptest::prelude::*;
    use schemas::profile::ProfilePoint;

    fn update(batch: u32, p95_ms: f64) -> ProfileUpdate {
        ProfileUpdate {
            service: "s".into(),
            version: "1".into(),
            backend: "tract".into(),
            point: ProfilePoint { workers: 1, batch, p50_ms: p95_ms, p95_ms, p99_ms: p95_ms, rps: 1e3 / p95_ms },
            samples: 500,
        }
    }

    #[test]
    fn the_flavor_that_measured_gets_a_profile_of_its_own() {
        let mut profiles = vec![profile("s", vec![point(1, 1, 10.0), point(1, 4, 30.0)])];
        let slow = Flavor { speed: 0.5, ..flavor("slow", 2, 1.0) };
        // 20 ms were planned on it, 40 ms it takes.
        assert_eq!(learn(&mut profiles, &slow, &update(1, 40.0)), Some(2.0));
        assert_eq!(profiles.len(), 2);
        assert_eq!(
            (profiles[0].flavor.clone(), profiles[0].profile.points[0].p95_ms),
            (None, 10.0),
            "others keep theirs"
        );
        assert_eq!(profiles[1].flavor.as_deref(), Some("slow"));
        let times: Vec<f64> = profiles[1].profile.points.iter().map(|p| p.p95_ms).collect();
        assert_eq!(times, [20.0, 60.0], "at speed 1, as profiles are");
        assert_eq!(learn(&mut profiles, &slow, &update(1, 40.0)), Some(1.0), "told again");
        assert_eq!(profiles.len(), 2);
        assert_eq!(learn(&mut profiles, &slow, &update(3, 40.0)), None, "no such batch");
        assert_eq!(learn(&mut profiles, &slow, &ProfileUpdate { service: "t".into(), ..update(1, 40.0) }), None);
    }

    #[test]
    fn the_first_measurement_takes_the_place_of_an_estimate() {
        // Likely 1 ms, slow end 3 ms, a thousand rows a second; in truth 50 times slower and hardly spread.
        let likely = ProfilePoint { workers: 1, batch: 1, p50_ms: 1.0, p95_ms: 3.0, p99_ms: 3.0, rps: 1000.0 };
        let batch = ProfilePoint { batch: 8, p50_ms: 2.0, p95_ms: 6.0, p99_ms: 6.0, rps: 4000.0, ..likely };
        let mut profiles = vec![profile("s", vec![likely, batch])];
        profiles[0].profile.estimated = true;
        let point = ProfilePoint { workers: 1, batch: 1, p50_ms: 50.0, p95_ms: 60.0, p99_ms: 75.0, rps: 20.0 };
        let first = ProfileUpdate { point, ..update(1, 60.0) };
        let node = Flavor { speed: 1.0, ..flavor("gpu", 2, 1.0) };
        assert_eq!(learn(&mut profiles, &node, &first), Some(50.0));
        let learned = &profiles[1].profile;
        assert!(!learned.estimated && profiles[0].profile.estimated, "other flavors keep the estimate");
        assert_eq!(learned.points[0], point);
        assert_eq!(
            learned.points[1],
            ProfilePoint { batch: 8, p50_ms: 100.0, p95_ms: 120.0, p99_ms: 150.0, rps: 80.0, ..point }
        );
    }

    proptest! {
        #[test]
        fn a_sound_profile_stays_sound(told in proptest::collection::vec((1u32..4, any::<f64>()), 1..20), speed in 0.1f64..10.0) {
            let mut profiles = vec![profile("s", vec![point(1, 1, 10.0), point(2, 2, 30.0)])];
            let node = Flavor { speed, ..flavor("f", 2, 1.0) };
            for (batch, p95_ms) in told {
                learn(&mut profiles, &node, &update(batch, p95_ms));
                let before = profiles.clone();
                prop_assert!(profiles.len() <= 2);
                for p in &before {
                    prop_assert_eq!(p.profile.problems(), Vec::<String>::new());
                }
            }
        }
    }
}
