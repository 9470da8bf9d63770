//! Encoding and decoding, the same for every message.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A value of a topic: knows its schema name and its record key.
pub trait Message: Serialize + DeserializeOwned + schemars::JsonSchema {
    /// `<topic>.v<major>`, the content of the `schema` field.
    const SCHEMA: &'static str;

    /// The record key that the topic's contract asks for.
    fn key(&self) -> String;

    /// The value's bytes: compact JSON. Fails only if a number is not finite.
    fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        serde_json::to_vec(self).map_err(|source| EncodeError { schema: Self::SCHEMA, source })
    }

    /// Reads a value; unknown fields are ignored, another schema name is an error.
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        serde_json::from_slice(bytes).map_err(|source| DecodeError { schema: Self::SCHEMA, source })
    }
}

/// A value could not be written as JSON.
#[derive(Debug, thiserror::Error)]
#[error("cannot encode {schema}: {source}")]
pub struct EncodeError {
    /// Schema name of the message.
    pub schema: &'static str,
    /// What serde_json says.
    pub source: serde_json::Error,
}

/// Bytes of a topic were not the message they should be.
#[derive(Debug, thiserror::Error)]
#[error("not a {schema} message: {source}")]
pub struct DecodeError {
    /// Schema name that was expected.
    pub schema: &'static str,
    /// What serde_json says: field, line and column.
    pub source: serde_json::Error,
}
