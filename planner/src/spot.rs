//! What an hour of a machine costs that the provider may take back.
//!
//! A spot node is interrupted `r` times an hour, without notice as far as the plan counts on. Each time its successor
//! is paid for one set-up `T` (boot, image, model) in which it does not serve, and what the node would have served in
//! that time is lost. A lost request is counted at `loss_factor` times what serving it costs, so
//!
//! ```text
//! expected price = price · (1 + r·T·(1 + loss_factor))
//! ```
//!
//! A cheap node that comes up slowly or is taken often is dear, and at `r = 0` the price is the price. This is the
//! price by which flavors are compared; what a plan says to cost is what is paid.
//! Left out: that spot nodes of one flavor tend to be taken together; spread them by quota.

use crate::lease::HOUR_MS;
use crate::model::{Flavor, Settings};

/// Expected price of an hour of service, USD, where a node needs `setup_ms` from its order to its first answer.
pub fn expected_usd_per_hour(flavor: &Flavor, setup_ms: i64, settings: &Settings) -> f64 {
    let setup_h = setup_ms.max(0) as f64 / HOUR_MS as f64;
    flavor.usd_per_hour * (1.0 + flavor.interruptions_per_hour * setup_h * (1.0 + settings.loss_factor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::flavor;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn more_interruptions_and_slower_set_ups_are_never_cheaper(
            usd in 0.0f64..5.0, r in 0.0f64..20.0, more in 0.0f64..5.0, setup in 0i64..600_000, slower in 0i64..600_000
        ) {
            let settings = Settings::default();
            let at = |r: f64, setup: i64| {
                let flavor = Flavor { interruptions_per_hour: r, ..flavor("f", 1, usd) };
                expected_usd_per_hour(&flavor, setup, &settings)
            };
            prop_assert_eq!(at(0.0, setup), usd);
            prop_assert!(at(r + more, setup) >= at(r, setup) && at(r, setup + slower) >= at(r, setup));
        }
    }
}
