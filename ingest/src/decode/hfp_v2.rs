//! HFP version 2: `/hfp/v2/<journey_type>/<temporal>/<event>/<mode>/…`.

use super::Decoder;
use super::hfp::{self, Version};
use schemas::telemetry::Source;

/// `/hfp/v2/…`.
pub(super) const DECODER: Decoder = Decoder {
    prefix: "/hfp/v2/",
    decode: |topic, payload, received_at_ms| hfp::decode(VERSION, topic, payload, received_at_ms),
};

const VERSION: Version = Version { source: Source::HfpV2, event_level: true };
