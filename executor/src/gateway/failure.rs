//! Why a request got no answer, as both protocols say it. Pure.

use crate::request::Fault;
use schemas::headers::Reason;

/// How long a client that was turned away for load should wait, milliseconds.
pub(crate) const RETRY_AFTER_MS: u64 = 1000;

/// What went wrong, by what the client can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// The request cannot be served as it is.
    BadRequest,
    /// No valid token.
    Unauthenticated,
    /// No such model, version or path.
    NotFound,
    /// The path is there, the method is not.
    MethodNotAllowed,
    /// The body did not come in time.
    SlowBody,
    /// Something else must change first.
    Conflict,
    /// The request is larger than the limit.
    TooLarge,
    /// The body is encoded in a way that is not served.
    BadEncoding,
    /// Too many requests at once; try again.
    TooMany,
    /// Broken on our side.
    Internal,
    /// This server does not do that.
    Unimplemented,
    /// Not now: overloaded, starting or stopping; try again.
    Unavailable,
    /// The deadline or the limit of time is over.
    Timeout,
}

impl Code {
    /// HTTP status.
    pub(crate) fn status(self) -> u16 {
        match self {
            Code::BadRequest => 400,
            Code::Unauthenticated => 401,
            Code::NotFound => 404,
            Code::MethodNotAllowed => 405,
            Code::SlowBody => 408,
            Code::Conflict => 409,
            Code::TooLarge => 413,
            Code::BadEncoding => 415,
            Code::TooMany => 429,
            Code::Internal => 500,
            Code::Unimplemented => 501,
            Code::Unavailable => 503,
            Code::Timeout => 504,
        }
    }

    /// gRPC status code.
    pub(crate) fn grpc(self) -> tonic::Code {
        match self {
            Code::BadRequest | Code::BadEncoding => tonic::Code::InvalidArgument,
            Code::Unauthenticated => tonic::Code::Unauthenticated,
            Code::NotFound => tonic::Code::NotFound,
            Code::MethodNotAllowed | Code::Unimplemented => tonic::Code::Unimplemented,
            Code::Conflict => tonic::Code::FailedPrecondition,
            Code::TooLarge | Code::TooMany => tonic::Code::ResourceExhausted,
            Code::Internal => tonic::Code::Internal,
            Code::Unavailable => tonic::Code::Unavailable,
            Code::SlowBody | Code::Timeout => tonic::Code::DeadlineExceeded,
        }
    }

    /// True when the same request may succeed a little later.
    pub(crate) fn may_retry(self) -> bool {
        matches!(self, Code::TooMany | Code::Unavailable)
    }
}

/// Why a request got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    pub(crate) code: Code,
    /// For a person; names the field where one is at fault.
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Failure { code, message: message.into() }
    }
}

/// What a reason of rejection means to a client.
fn code_of(reason: Reason) -> Code {
    match reason {
        Reason::BadTopic
        | Reason::InvalidJson
        | Reason::MissingField
        | Reason::BadField
        | Reason::UnknownFormat
        | Reason::BadShape
        | Reason::BadDatatype => Code::BadRequest,
        Reason::TooLarge => Code::TooLarge,
        Reason::UnknownModelVersion => Code::NotFound,
        Reason::DeadlinePast => Code::Timeout,
        Reason::WouldMissDeadline | Reason::Overloaded | Reason::ShuttingDown => Code::Unavailable,
        Reason::InferenceFailed => Code::Internal,
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Failure { code: code_of(fault.reason), message: format!("{}: {}", fault.reason, fault.detail) }
    }
}

/// What a record of the rejected topic says: its reason may be one of a newer version.
pub(crate) fn from_rejection(reason: &str, detail: &str) -> Failure {
    let known = serde_json::from_value::<Reason>(serde_json::Value::String(reason.to_owned()));
    let code = known.map_or(Code::Internal, code_of);
    Failure { code, message: format!("{reason}: {detail}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejections_are_said_as_both_protocols_say_them() {
        let cases = [
            (Reason::BadShape, 400, tonic::Code::InvalidArgument, false),
            (Reason::TooLarge, 413, tonic::Code::ResourceExhausted, false),
            (Reason::UnknownModelVersion, 404, tonic::Code::NotFound, false),
            (Reason::DeadlinePast, 504, tonic::Code::DeadlineExceeded, false),
            (Reason::WouldMissDeadline, 503, tonic::Code::Unavailable, true),
            (Reason::Overloaded, 503, tonic::Code::Unavailable, true),
            (Reason::InferenceFailed, 500, tonic::Code::Internal, false),
        ];
        for (reason, status, grpc, retry) in cases {
            let failure = Failure::from(Fault { reason, detail: "why".to_owned() });
            assert_eq!((failure.code.status(), failure.code.grpc(), failure.code.may_retry()), (status, grpc, retry));
            assert_eq!(failure, from_rejection(reason.as_str(), "why"));
            assert_eq!(failure.message, format!("{reason}: why"));
        }
        assert_eq!(from_rejection("of-tomorrow", "x").code, Code::Internal);
    }
}
