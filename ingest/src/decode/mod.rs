//! From an MQTT message to a normalised event: one pure function, one decoder per protocol.
//!
//! Purpose: [`decode`] finds the decoder by the prefix of the topic and runs it. A decoder is a file of this folder
//! that exports a [`Decoder`]; adding one is adding the file and its line in [`DECODERS`].
//!
//! Invariants:
//! - Pure and total: no clock, no I/O, and no bytes make it panic (property tests below).
//! - An event holds no NaN and no infinity; a message that cannot be used is a [`Reject`] that names the level of
//!   the topic or the field of the payload that is wrong.
//! - Both clocks are kept: the device's in `event_time_ms`, ours in `received_at_ms`.
//! - The record key is made of operator and vehicle of the topic alone, checked to be short ASCII: routes hold
//!   spaces and headsigns are not ASCII.
//!
//! Left out: what is done with a rejected message ([`crate::pipeline`]).

mod hfp;
mod hfp_v1;
mod hfp_v2;
mod scalar;

use schemas::EpochMs;
use schemas::headers::Reason;
use schemas::telemetry::VehicleEvent;

/// Why a message is not an event. Becomes the headers of a record in `telemetry.rejected`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Reject {
    /// Class of the problem.
    pub reason: Reason,
    /// What exactly, naming the topic level or field; at most a few hundred bytes.
    pub detail: String,
}

impl Reject {
    /// A rejection.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Reject { reason, detail: detail.into() }
    }
}

/// A protocol that ingest understands.
#[derive(Debug, Clone, Copy)]
pub struct Decoder {
    /// Topics that begin with this are its own.
    pub prefix: &'static str,
    /// Topic, payload and receive time (milliseconds since the epoch) to an event.
    pub decode: fn(&str, &[u8], EpochMs) -> Result<VehicleEvent, Reject>,
}

/// Every decoder. Prefixes do not overlap (tested).
pub const DECODERS: &[Decoder] = &[hfp_v2::DECODER, hfp_v1::DECODER];

/// Decodes one message; `received_at_ms` is when we got it.
///
/// # Errors
/// A [`Reject`] when no decoder knows the topic, or when its decoder cannot use the message.
pub fn decode(topic: &str, payload: &[u8], received_at_ms: EpochMs) -> Result<VehicleEvent, Reject> {
    match DECODERS.iter().find(|decoder| topic.starts_with(decoder.prefix)) {
        Some(decoder) => (decoder.decode)(topic, payload, received_at_ms),
        None => {
            let known: Vec<&str> = DECODERS.iter().map(|d| d.prefix).collect();
            let detail = format!("no decoder for topic `{}`; known prefixes: {}", excerpt(topic), known.join(", "));
            Err(Reject::new(Reason::UnknownFormat, detail))
        }
    }
}

/// [`decode`], refusing payloads of more than `max_payload_bytes` without looking into them.
///
/// # Errors
/// [`Reason::TooLarge`] above the limit, else as [`decode`].
pub fn decode_within(
    max_payload_bytes: usize,
    topic: &str,
    payload: &[u8],
    received_at_ms: EpochMs,
) -> Result<VehicleEvent, Reject> {
    if payload.len() > max_payload_bytes {
        let detail = format!("payload has {} bytes, the limit is {max_payload_bytes}", payload.len());
        return Err(Reject::new(Reason::TooLarge, detail));
    }
    decode(topic, payload, received_at_ms)
}

/// The first characters of outside text, for a detail that stays short.
fn excerpt(text: &str) -> &str {
    const MAX_CHARS: usize = 80;
    text.char_indices().nth(MAX_CHARS).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests;
