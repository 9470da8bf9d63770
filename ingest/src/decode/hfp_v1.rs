//! HFP version 1: as version 2 without the `<event>` level; the feed of 2018 has position events (VP) only.

use super::Decoder;
use super::hfp::{self, Version};
use schemas::telemetry::Source;

/// `/hfp/v1/…`.
pub(super) const DECODER: Decoder = Decoder {
    prefix: "/hfp/v1/",
    decode: |topic, payload, received_at_ms| hfp::decode(VERSION, topic, payload, received_at_ms),
};

const VERSION: Version = Version { source: Source::HfpV1, event_level: false };
