//! Reading a body within the limits.

use super::core::{Admission, too_large};
use super::failure::{Code, Failure};
use bytes::{Bytes, BytesMut};
use flate2::read::{GzDecoder, ZlibDecoder};
use http_body_util::{BodyExt, Collected, LengthLimitError, Limited};
use std::io::Read;

/// Bytes of a request that carries no tensors.
const MAX_SMALL: usize = 1 << 20;

/// The body of a request that carries no tensors: it takes no place among those for inference.
pub(crate) async fn read_small<B>(body: B) -> Result<Bytes, Failure>
where
    B: hyper::body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let read = Limited::new(body, MAX_SMALL).collect().await;
    read.map(Collected::to_bytes).map_err(|error| match error.downcast::<LengthLimitError>() {
        Ok(_) => Failure::new(Code::TooLarge, format!("too-large: the request has more than {MAX_SMALL} bytes")),
        Err(error) => Failure::new(Code::BadRequest, format!("the body broke off: {error}")),
    })
}

/// The whole body. `declared` is its length as far as the client told: what is too large is refused before it is read.
pub(crate) async fn read<B>(mut body: B, declared: Option<u64>, admission: &mut Admission) -> Result<Bytes, Failure>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let mut room = 0;
    if let Some(declared) = declared {
        room = usize::try_from(declared).map_err(|_| too_large(usize::MAX))?;
        admission.take_bytes(room)?;
    }
    let deadline = admission.deadline();
    let mut first: Option<Bytes> = None;
    let mut all: Option<BytesMut> = None;
    let mut length = 0;
    loop {
        let frame = tokio::time::timeout_at(deadline, body.frame())
            .await
            .map_err(|_| Failure::new(Code::SlowBody, format!("the body stopped after {length} bytes")))?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|e| Failure::new(Code::BadRequest, format!("the body broke off: {e}")))?;
        // Trailers carry nothing that is read.
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        if length > room {
            admission.take_bytes(length - room)?;
            room = length;
        }
        match (&mut all, first.take()) {
            (Some(all), _) => all.extend_from_slice(&data),
            (None, None) => first = Some(data),
            (None, Some(before)) => {
                let mut joined = BytesMut::with_capacity(room.max(length));
                joined.extend_from_slice(&before);
                joined.extend_from_slice(&data);
                all = Some(joined);
            }
        }
    }
    Ok(all.map(BytesMut::freeze).or(first).unwrap_or_default())
}

/// A body as its `content-encoding` says: `gzip`, or `deflate` in its zlib form. What it grows to counts as well.
pub(crate) async fn decoded(body: Bytes, encoding: &str, admission: &mut Admission) -> Result<Bytes, Failure> {
    let deflate = match encoding.trim().to_ascii_lowercase().as_str() {
        "identity" | "" => return Ok(body),
        "gzip" => false,
        "deflate" => true,
        other => {
            let message = format!("content-encoding: `{other}` is not served, use gzip, deflate or none");
            return Err(Failure::new(Code::BadEncoding, message));
        }
    };
    let limit = admission.max_body();
    // A few bytes may become many: not on a thread that serves sockets.
    let inflating = tokio::task::spawn_blocking(move || match deflate {
        true => inflate(ZlibDecoder::new(body.as_ref()), limit),
        false => inflate(GzDecoder::new(body.as_ref()), limit),
    });
    let plain = inflating.await.map_err(|e| Failure::new(Code::Internal, format!("a bug: {e}")))??;
    admission.take_bytes_up_to(plain.len())?;
    Ok(plain)
}

fn inflate(decoder: impl Read, limit: usize) -> Result<Bytes, Failure> {
    let mut plain = Vec::new();
    let read = decoder.take(limit as u64 + 1).read_to_end(&mut plain);
    read.map_err(|e| Failure::new(Code::BadRequest, format!("content-encoding: the body cannot be unpacked: {e}")))?;
    if plain.len() > limit { Err(too_large(limit)) } else { Ok(plain.into()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use flate2::Compression;
    use flate2::write::{GzEncoder, ZlibEncoder};
    use proptest::prelude::*;
    use std::io::Write;

    proptest! {
        #[test]
        fn what_was_packed_is_unpacked_within_the_limit(
            plain in prop::collection::vec(any::<u8>(), 0..300), limit in 0usize..400,
        ) {
            let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
            gzip.write_all(&plain).unwrap();
            let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
            zlib.write_all(&plain).unwrap();
            let (gzip, zlib) = (gzip.finish().unwrap(), zlib.finish().unwrap());
            for unpacked in [inflate(GzDecoder::new(&*gzip), limit), inflate(ZlibDecoder::new(&*zlib), limit)] {
                match unpacked {
                    Ok(bytes) => prop_assert!(bytes == plain && plain.len() <= limit),
                    Err(failure) => prop_assert!(failure.code == Code::TooLarge && plain.len() > limit),
                }
            }
        }

        #[test]
        fn no_bytes_make_unpacking_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = inflate(GzDecoder::new(&*bytes), 1000);
            let _ = inflate(ZlibDecoder::new(&*bytes), 1000);
        }
    }
}
