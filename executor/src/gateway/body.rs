//! Reading a body within the limits.

use super::core::{Admission, too_large};
use super::failure::{Code, Failure};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;

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
