//! Frames: the header of a request, typed bodies, and replies ready for the socket.
//!
//! A frame is what follows the four length bytes. Parsing is pure; [`Refusal`] says why a frame
//! ends its connection, which is also what Apache Kafka does with it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, ApiVersionsResponse, ResponseHeader};
use kafka_protocol::protocol::{Encodable, HeaderVersion, Request, StrBytes};

use super::api::{self, Api};
use super::shape;

/// Why a connection must be closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// The header is cut off or not text where text belongs.
    #[error("the request header is malformed")]
    Header,
    /// No such request is served.
    #[error("request key {0} is not served by this broker")]
    UnknownKey(i16),
    /// The request is served, but not in this version.
    #[error("{key:?} version {version} is not served, only {min} to {max}")]
    Version {
        /// Which request.
        key: ApiKey,
        /// The version that was sent.
        version: i16,
        /// Lowest version served.
        min: i16,
        /// Highest version served.
        max: i16,
    },
    /// The body does not have the layout of the request.
    #[error("{key:?} version {version}: {why}")]
    Body {
        /// Which request.
        key: ApiKey,
        /// The version that was sent.
        version: i16,
        /// What is wrong.
        why: String,
    },
    /// The reply could not be encoded in the version asked for.
    #[error("reply does not fit the protocol: {0}")]
    Reply(String),
    /// The request itself asks for the connection to end, for instance a failed `acks=0` produce,
    /// which has no other way to learn of its failure.
    #[error("{0}")]
    Ended(String),
}

/// A request whose header is understood and whose body has the right layout.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) api: &'static Api,
    pub(crate) version: i16,
    pub(crate) correlation: i32,
    pub(crate) client_id: StrBytes,
    pub(crate) body: Bytes,
}

/// What a frame turned out to be.
#[derive(Debug)]
pub(crate) enum Parsed {
    /// A request to be served.
    Request(Frame),
    /// `ApiVersions` in a version from the future: the protocol asks for a reply in version 0.
    FutureApiVersions {
        /// Echoed in the reply.
        correlation: i32,
    },
    /// A request of the protocol that this broker does not serve.
    Unserved {
        /// Which request.
        key: ApiKey,
        /// The version that was sent.
        version: i16,
        /// Echoed in the reply.
        correlation: i32,
    },
}

/// Reads the header and checks the layout of the body.
pub(crate) fn parse(mut frame: Bytes) -> Result<Parsed, Refusal> {
    if frame.len() < 8 {
        return Err(Refusal::Header);
    }
    let key = frame.get_i16();
    let version = frame.get_i16();
    let correlation = frame.get_i32();
    let Some(api) = api::find(key) else {
        let key = ApiKey::try_from(key).map_err(|()| Refusal::UnknownKey(key))?;
        let versions = key.valid_versions();
        return match (versions.min..=versions.max).contains(&version) {
            true => Ok(Parsed::Unserved { key, version, correlation }),
            false => Err(Refusal::UnknownKey(key as i16)),
        };
    };
    if !(api.min_served..=api.max).contains(&version) {
        if api.key == ApiKey::ApiVersions {
            return Ok(Parsed::FutureApiVersions { correlation });
        }
        let (key, min, max) = (api.key, api.min_served, api.max);
        return Err(Refusal::Version { key, version, min, max });
    }
    let flexible = api.is_flexible(version);
    let client_id = client_id(&mut frame)?;
    if flexible {
        skip_tags(&mut frame)?;
    }
    shape::check(api.body, version, flexible, &frame).map_err(|why| Refusal::Body {
        key: api.key,
        version,
        why: why.to_string(),
    })?;
    Ok(Parsed::Request(Frame { api, version, correlation, client_id, body: frame }))
}

/// The client id has the old two-byte length in every header version.
fn client_id(frame: &mut Bytes) -> Result<StrBytes, Refusal> {
    let length = frame.try_get_i16().map_err(|_| Refusal::Header)?;
    if length == -1 {
        return Ok(StrBytes::from_static_str(""));
    }
    let length = usize::try_from(length).map_err(|_| Refusal::Header)?;
    if frame.len() < length {
        return Err(Refusal::Header);
    }
    StrBytes::try_from(frame.split_to(length)).map_err(|_| Refusal::Header)
}

fn skip_tags(frame: &mut Bytes) -> Result<(), Refusal> {
    for _ in 0..varint(frame)? {
        varint(frame)?;
        let size = varint(frame)? as usize;
        if frame.len() < size {
            return Err(Refusal::Header);
        }
        frame.advance(size);
    }
    Ok(())
}

fn varint(frame: &mut Bytes) -> Result<u32, Refusal> {
    let mut value = 0u32;
    for i in 0..5 {
        let byte = frame.try_get_u8().map_err(|_| Refusal::Header)?;
        value |= u32::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Refusal::Header)
}

impl Frame {
    /// Decodes the body as `Q`, which must be the type of this frame's request.
    pub(crate) fn decode<Q: Request>(&self) -> Result<Q, Refusal> {
        let mut body = self.body.clone();
        Q::decode(&mut body, self.version).map_err(|why| Refusal::Body {
            key: self.api.key,
            version: self.version,
            why: why.to_string(),
        })
    }

    /// Encodes a reply to this frame, with its length in front.
    pub(crate) fn encode<R>(&self, reply: &R) -> Result<BytesMut, Refusal>
    where
        R: Encodable + HeaderVersion,
    {
        encode(self.correlation, self.version, reply)
    }
}

/// Encodes a reply with its length in front.
pub(crate) fn encode<R>(correlation: i32, version: i16, reply: &R) -> Result<BytesMut, Refusal>
where
    R: Encodable + HeaderVersion,
{
    let refuse = |why: &dyn std::fmt::Display| Refusal::Reply(why.to_string());
    let size = reply.compute_size(version).map_err(|why| refuse(&why))?;
    let mut out = BytesMut::with_capacity(size + 16);
    out.put_i32(0);
    ResponseHeader::default()
        .with_correlation_id(correlation)
        .encode(&mut out, R::header_version(version))
        .map_err(|why| refuse(&why))?;
    reply.encode(&mut out, version).map_err(|why| refuse(&why))?;
    let length = i32::try_from(out.len() - 4).map_err(|why| refuse(&why))?;
    out[..4].copy_from_slice(&length.to_be_bytes());
    Ok(out)
}

/// The reply to `ApiVersions` in a version that is not served.
pub(crate) fn future_api_versions(correlation: i32, reply: &ApiVersionsResponse) -> Result<BytesMut, Refusal> {
    encode(correlation, 0, reply)
}

#[cfg(test)]
#[path = "frame_tests.rs"]
pub(crate) mod tests;
