//! Serde form of long `f64` arrays: base 64 of their little-endian bytes.
//!
//! Purpose: state that comes back bit for bit (NaN included, which marks an unknown sample) in two thirds of the
//! space of decimal digits. Use with `#[serde(with = "crate::bits")]`.
//!
//! Left out: URL-safe alphabets and line breaks; a reader of the state is always this module.

use serde::{Deserialize, Deserializer, Serializer};

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

pub(crate) fn serialize<S: Serializer>(values: &[f64], serializer: S) -> Result<S::Ok, S::Error> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    serializer.serialize_str(&encode(&bytes))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
    let bytes = decode(&text).map_err(serde::de::Error::custom)?;
    if !bytes.len().is_multiple_of(8) {
        return Err(serde::de::Error::custom(format!("{} bytes are no whole number of f64", bytes.len())));
    }
    Ok(bytes
        .chunks_exact(8)
        .map(|chunk| {
            let mut word = [0_u8; 8];
            word.copy_from_slice(chunk);
            f64::from_le_bytes(word)
        })
        .collect())
}

/// The same for arrays of `f32`: `#[serde(with = "crate::bits::single")]`.
pub(crate) mod single {
    use super::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(values: &[f32], serializer: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        serializer.serialize_str(&super::encode(&bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f32>, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let bytes = super::decode(&text).map_err(serde::de::Error::custom)?;
        let (words, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(serde::de::Error::custom(format!("{} bytes are no whole number of f32", bytes.len())));
        }
        Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
    }
}

/// The same for arrays of `i16`: `#[serde(with = "crate::bits::short")]`.
pub(crate) mod short {
    use super::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(values: &[i16], serializer: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        serializer.serialize_str(&super::encode(&bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<i16>, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let bytes = super::decode(&text).map_err(serde::de::Error::custom)?;
        let (words, rest) = bytes.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(serde::de::Error::custom(format!("{} bytes are no whole number of i16", bytes.len())));
        }
        Ok(words.iter().map(|word| i16::from_le_bytes(*word)).collect())
    }
}

/// The same for arrays of `i8`: `#[serde(with = "crate::bits::tiny")]`.
pub(crate) mod tiny {
    use super::{Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(values: &[i8], serializer: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = values.iter().map(|value| value.cast_unsigned()).collect();
        super::bytes::serialize(&bytes, serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<i8>, D::Error> {
        Ok(super::bytes::deserialize(deserializer)?.into_iter().map(u8::cast_signed).collect())
    }
}

/// The same for byte arrays: `#[serde(with = "crate::bits::bytes")]`.
pub(crate) mod bytes {
    use super::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(values: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::encode(values))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        super::decode(&text).map_err(serde::de::Error::custom)
    }
}

fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().enumerate().fold(0_u32, |word, (i, &byte)| word | u32::from(byte) << (16 - 8 * i));
        for i in 0..4 {
            if i <= chunk.len() {
                text.push(char::from(ALPHABET[(word >> (18 - 6 * i) & 63) as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

fn decode(text: &str) -> Result<Vec<u8>, String> {
    if !text.len().is_multiple_of(4) {
        return Err(format!("{} characters are no base 64", text.len()));
    }
    let body = text.trim_end_matches('=');
    if text.len() - body.len() > 2 {
        return Err("more than two padding characters in base 64".to_owned());
    }
    let mut bytes = Vec::with_capacity(body.len() * 3 / 4);
    for chunk in body.as_bytes().chunks(4) {
        let mut word = 0_u32;
        for (i, &symbol) in chunk.iter().enumerate() {
            word |= digit(symbol)? << (18 - 6 * i);
        }
        bytes.extend_from_slice(&word.to_be_bytes()[1..chunk.len()]);
    }
    Ok(bytes)
}

fn digit(symbol: u8) -> Result<u32, String> {
    let value = match symbol {
        b'A'..=b'Z' => symbol - b'A',
        b'a'..=b'z' => symbol - b'a' + 26,
        b'0'..=b'9' => symbol - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        other => return Err(format!("`{}` is no base 64 digit", other.escape_ascii())),
    };
    Ok(u32::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(serde::Serialize, Deserialize)]
    struct Wrapped {
        #[serde(with = "crate::bits")]
        values: Vec<f64>,
        #[serde(with = "crate::bits::bytes")]
        raw: Vec<u8>,
    }

    #[test]
    fn knows_the_standard_vectors() {
        for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(encode(plain.as_bytes()), coded);
            assert_eq!(decode(coded).unwrap(), plain.as_bytes());
        }
    }

    #[test]
    fn refuses_what_is_not_base_64() {
        for bad in ["Zg=", "Z===", "Zm9*", "Zm9vZ"] {
            assert!(decode(bad).is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<Wrapped>(r#"{"values":"Zm9v","raw":""}"#).is_err(), "three bytes are no f64");
    }

    proptest! {
        #[test]
        fn comes_back_bit_for_bit(words in prop::collection::vec(any::<u64>(), 0..40), raw in prop::collection::vec(any::<u8>(), 0..40)) {
            let before = Wrapped { values: words.iter().map(|&word| f64::from_bits(word)).collect(), raw: raw.clone() };
            let text = serde_json::to_string(&before).unwrap();
            let after: Wrapped = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(after.values.iter().map(|value| value.to_bits()).collect::<Vec<_>>(), words);
            prop_assert_eq!(after.raw, raw);
        }
    }
}
