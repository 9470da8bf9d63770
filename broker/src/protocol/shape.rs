//! Byte layouts of the requests that are served, checked before the generated decoders run.
//!
//! The decoders of `kafka-protocol` reserve memory for the number of elements a request claims; a
//! frame of twenty bytes that claims two billion would abort the process. [`check`] walks the
//! bytes along a description of the layout and refuses counts and lengths that the remaining
//! bytes cannot hold. The description of each request is in `api`; a property test generates
//! random frames from it and has the real decoders agree.
//!
//! Left out: values. Whether a string is UTF-8 or a number sensible is for others to say.

/// One field of a request, present in versions `since..=until`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field {
    /// First version that has the field.
    pub(crate) since: i16,
    /// Last version that has the field.
    pub(crate) until: i16,
    /// Its layout.
    pub(crate) shape: Shape,
}

/// Layout of a field.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shape {
    /// A number, boolean or UUID of this many bytes.
    Fixed(usize),
    /// A string that may be null.
    Text,
    /// A byte string that may be null.
    Blob,
    /// An array of numbers or UUIDs of this many bytes each.
    Numbers(usize),
    /// An array of strings.
    Texts,
    /// An array of structs.
    Structs(&'static [Field]),
}

/// A field that every version has.
pub(crate) const fn always(shape: Shape) -> Field {
    Field { since: 0, until: i16::MAX, shape }
}

/// A field that versions from `since` on have.
pub(crate) const fn since(since: i16, shape: Shape) -> Field {
    Field { since, until: i16::MAX, shape }
}

/// A field that versions up to `until` have.
pub(crate) const fn until(until: i16, shape: Shape) -> Field {
    Field { since: 0, until, shape }
}

/// Why a frame cannot be a request of the described layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Mismatch {
    /// A field ends behind the end of the frame.
    #[error("the frame ends inside a field")]
    Short,
    /// A length or count is negative where that has no meaning, or overlong.
    #[error("a length is malformed")]
    Length,
    /// More elements are claimed than the rest of the frame can hold.
    #[error("more elements are claimed than the frame holds")]
    Count,
}

/// Checks that `body` begins with the layout of `fields` in `version`. Bytes behind the last field
/// are let pass, as Apache Kafka does: librdkafka 2.12 writes three zeros too many when it asks
/// for metadata about all topics.
pub(crate) fn check(fields: &[Field], version: i16, flexible: bool, body: &[u8]) -> Result<(), Mismatch> {
    let mut walk = Walk { rest: body, version, flexible };
    walk.structure(fields)
}

struct Walk<'a> {
    rest: &'a [u8],
    version: i16,
    flexible: bool,
}

impl Walk<'_> {
    fn structure(&mut self, fields: &[Field]) -> Result<(), Mismatch> {
        for field in fields {
            if (field.since..=field.until).contains(&self.version) {
                self.shape(field.shape)?;
            }
        }
        if self.flexible { self.tags() } else { Ok(()) }
    }

    fn shape(&mut self, shape: Shape) -> Result<(), Mismatch> {
        match shape {
            Shape::Fixed(size) => self.skip(size),
            Shape::Text => self.text(),
            Shape::Blob => self.blob(),
            Shape::Numbers(size) => {
                let count = self.count(size)?;
                self.skip(count * size)
            }
            Shape::Texts => {
                for _ in 0..self.count(1)? {
                    self.text()?;
                }
                Ok(())
            }
            Shape::Structs(fields) => {
                let least = self.least(fields);
                for _ in 0..self.count(least)? {
                    self.structure(fields)?;
                }
                Ok(())
            }
        }
    }

    /// Fewest bytes that one struct of `fields` takes.
    fn least(&self, fields: &[Field]) -> usize {
        let one = |shape| match (shape, self.flexible) {
            (Shape::Fixed(size), _) => size,
            (_, true) => 1,
            (Shape::Text, false) => 2,
            (_, false) => 4,
        };
        let present = fields.iter().filter(|f| (f.since..=f.until).contains(&self.version));
        present.map(|f| one(f.shape)).sum::<usize>() + usize::from(self.flexible)
    }

    fn skip(&mut self, size: usize) -> Result<(), Mismatch> {
        self.rest = self.rest.get(size..).ok_or(Mismatch::Short)?;
        Ok(())
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Mismatch> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(Mismatch::Short)?;
        self.rest = rest;
        Ok(*head)
    }

    fn varint(&mut self) -> Result<usize, Mismatch> {
        let mut value = 0u64;
        for i in 0..5 {
            let [byte] = self.fixed()?;
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                let value = u32::try_from(value).map_err(|_| Mismatch::Length)?;
                return usize::try_from(value).map_err(|_| Mismatch::Length);
            }
        }
        Err(Mismatch::Length)
    }

    /// A compact length: one more than the length, zero for null (which is as good as empty).
    fn compact(&mut self) -> Result<usize, Mismatch> {
        self.varint().map(|n| n.saturating_sub(1))
    }

    fn plain(length: i64) -> Result<usize, Mismatch> {
        if length == -1 { Ok(0) } else { usize::try_from(length).map_err(|_| Mismatch::Length) }
    }

    fn text(&mut self) -> Result<(), Mismatch> {
        let length =
            if self.flexible { self.compact()? } else { Self::plain(i16::from_be_bytes(self.fixed()?).into())? };
        self.skip(length)
    }

    fn blob(&mut self) -> Result<(), Mismatch> {
        let length =
            if self.flexible { self.compact()? } else { Self::plain(i32::from_be_bytes(self.fixed()?).into())? };
        self.skip(length)
    }

    fn count(&mut self, least: usize) -> Result<usize, Mismatch> {
        let count =
            if self.flexible { self.compact()? } else { Self::plain(i32::from_be_bytes(self.fixed()?).into())? };
        match count.checked_mul(least.max(1)) {
            Some(needed) if needed <= self.rest.len() => Ok(count),
            _ => Err(Mismatch::Count),
        }
    }

    fn tags(&mut self) -> Result<(), Mismatch> {
        for _ in 0..self.varint()? {
            self.varint()?;
            let size = self.varint()?;
            self.skip(size)?;
        }
        Ok(())
    }
}
