//! JSON values as HFP payloads use them, and their conversion to the types of an event.
//!
//! A payload is read once into a flat list of named scalars; text borrows from the payload where it has no escapes.
//! Conversions name the field in their error. Nothing here decides which field means what ([`super::hfp`]).

use super::{Reject, excerpt};
use schemas::EpochMs;
use schemas::headers::Reason;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::borrow::Cow;
use std::fmt;

/// A JSON value without structure, or anything else as it came.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Scalar<'a> {
    Null,
    Bool(bool),
    Int(i64),
    /// Finite: JSON has no other numbers, and the parser refuses those beyond f64.
    Float(f64),
    Text(Cow<'a, str>),
    /// Objects, arrays, and integers beyond i64.
    Other(Value),
}

impl Scalar<'_> {
    /// The value as it came, for `attrs`.
    pub(super) fn into_value(self) -> Value {
        match self {
            Scalar::Null => Value::Null,
            Scalar::Bool(b) => Value::from(b),
            Scalar::Int(i) => Value::from(i),
            Scalar::Float(f) => Value::from(f),
            Scalar::Text(t) => Value::from(t.into_owned()),
            Scalar::Other(v) => v,
        }
    }

    fn describe(&self) -> String {
        match self {
            Scalar::Text(t) => format!("`{}`", excerpt(t)),
            Scalar::Other(Value::Object(_)) => "an object".to_owned(),
            Scalar::Other(Value::Array(_)) => "an array".to_owned(),
            other => format!("`{}`", other.clone().into_value()),
        }
    }
}

pub(super) fn bad_field(name: &str, value: &Scalar<'_>, expected: &str) -> Reject {
    Reject::new(Reason::BadField, format!("field `{name}` is {}, expected {expected}", value.describe()))
}

/// Text; null and the empty string are nothing.
pub(super) fn text(name: &str, value: Scalar<'_>) -> Result<Option<String>, Reject> {
    match value {
        Scalar::Null => Ok(None),
        Scalar::Text(t) if t.is_empty() => Ok(None),
        Scalar::Text(t) => Ok(Some(t.into_owned())),
        other => Err(bad_field(name, &other, "text or null")),
    }
}

/// An integer; one written with a zero fraction counts.
pub(super) fn integer(name: &str, value: Scalar<'_>) -> Result<Option<i64>, Reject> {
    match value {
        Scalar::Null => Ok(None),
        Scalar::Int(i) => Ok(Some(i)),
        // Every integral f64 of this size is exactly an i64.
        Scalar::Float(f) if f.fract() == 0.0 && f.abs() < 9e15 => Ok(Some(f as i64)),
        other => Err(bad_field(name, &other, "an integer or null")),
    }
}

/// An integer between two bounds, both included.
pub(super) fn integer_in(name: &str, value: Scalar<'_>, min: i64, max: i64) -> Result<Option<i64>, Reject> {
    match integer(name, value)? {
        Some(i) if !(min..=max).contains(&i) => {
            Err(bad_field(name, &Scalar::Int(i), &format!("an integer from {min} to {max}")))
        }
        checked => Ok(checked),
    }
}

/// A number; integers are numbers too.
pub(super) fn number(name: &str, value: Scalar<'_>) -> Result<Option<f64>, Reject> {
    match value {
        Scalar::Null => Ok(None),
        Scalar::Int(i) => Ok(Some(i as f64)),
        Scalar::Float(f) if f.is_finite() => Ok(Some(f)),
        other => Err(bad_field(name, &other, "a number or null")),
    }
}

/// A number between two bounds, both included.
pub(super) fn number_in(name: &str, value: Scalar<'_>, min: f64, max: f64) -> Result<Option<f64>, Reject> {
    match number(name, value)? {
        Some(f) if !(min..=max).contains(&f) => {
            Err(bad_field(name, &Scalar::Float(f), &format!("a number from {min} to {max}")))
        }
        checked => Ok(checked),
    }
}

/// An ISO 8601 instant with its zone, with or without fraction, in milliseconds since the epoch.
pub(super) fn instant(name: &str, value: Scalar<'_>) -> Result<Option<EpochMs>, Reject> {
    let parsed = match &value {
        Scalar::Null => return Ok(None),
        Scalar::Text(t) => t.parse::<jiff::Timestamp>().ok(),
        _ => None,
    };
    match parsed {
        Some(instant) => Ok(Some(instant.as_millisecond())),
        None => Err(bad_field(name, &value, "an ISO 8601 time with zone, such as 2024-02-13T16:32:59.931Z")),
    }
}

impl<'de> Deserialize<'de> for Scalar<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

struct ScalarVisitor;

impl<'de> Visitor<'de> for ScalarVisitor {
    type Value = Scalar<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Scalar::Null)
    }
    fn visit_bool<E>(self, v: bool) -> Result<Self::Value, E> {
        Ok(Scalar::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Self::Value, E> {
        Ok(Scalar::Int(v))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Self::Value, E> {
        Ok(i64::try_from(v).map_or_else(|_| Scalar::Other(Value::from(v)), Scalar::Int))
    }
    fn visit_f64<E>(self, v: f64) -> Result<Self::Value, E> {
        Ok(Scalar::Float(v))
    }
    fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Self::Value, E> {
        Ok(Scalar::Text(Cow::Borrowed(v)))
    }
    fn visit_str<E>(self, v: &str) -> Result<Self::Value, E> {
        Ok(Scalar::Text(Cow::Owned(v.to_owned())))
    }
    fn visit_string<E>(self, v: String) -> Result<Self::Value, E> {
        Ok(Scalar::Text(Cow::Owned(v)))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
        Value::deserialize(SeqAccessDeserializer::new(seq)).map(Scalar::Other)
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        Value::deserialize(MapAccessDeserializer::new(map)).map(Scalar::Other)
    }
}

/// A JSON object as a list of its members in order. Of a repeated name the last one counts, as in most parsers.
#[derive(Debug, Default)]
pub(super) struct Fields<'a>(pub(super) Vec<(Cow<'a, str>, Scalar<'a>)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with the event's fields")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        // 22 fields are usual.
        let mut fields = Vec::with_capacity(24);
        while let Some(Name(name)) = map.next_key()? {
            fields.push((name, map.next_value()?));
        }
        Ok(Fields(fields))
    }
}

/// An object key that borrows where it can (`Cow` alone always copies).
struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Scalar::deserialize(deserializer)? {
            Scalar::Text(name) => Ok(Name(name)),
            _ => Err(serde::de::Error::custom("object key is not text")),
        }
    }
}

/// `{"<EVENT>": {…}}`: exactly one member, whose value is an object.
#[derive(Debug)]
pub(super) struct Envelope<'a> {
    pub(super) event: Cow<'a, str>,
    pub(super) fields: Fields<'a>,
}

impl<'de> Deserialize<'de> for Envelope<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EnvelopeVisitor)
    }
}

struct EnvelopeVisitor;

impl<'de> Visitor<'de> for EnvelopeVisitor {
    type Value = Envelope<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with one member, the event")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let Some(Name(event)) = map.next_key()? else {
            return Err(serde::de::Error::custom("the object is empty, expected one member, the event"));
        };
        let fields = map.next_value()?;
        if let Some(Name(second)) = map.next_key()? {
            let detail = format!("a second member `{}`, expected one, the event", excerpt(&second));
            return Err(serde::de::Error::custom(detail));
        }
        Ok(Envelope { event, fields })
    }
}
