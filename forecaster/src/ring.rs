//! A ring of numbers: the newest `capacity` values, the oldest overwritten.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A kind of number that a ring can keep.
pub(crate) trait Kept: Copy + Into<f64> {
    /// Rounded to this kind.
    fn from_f64(value: f64) -> Self;
    fn write<S: Serializer>(values: &[Self], serializer: S) -> Result<S::Ok, S::Error>;
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Self>, D::Error>;
}

impl Kept for f64 {
    fn from_f64(value: f64) -> Self {
        value
    }

    fn write<S: Serializer>(values: &[f64], serializer: S) -> Result<S::Ok, S::Error> {
        crate::bits::serialize(values, serializer)
    }

    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
        crate::bits::deserialize(deserializer)
    }
}

impl Kept for f32 {
    fn from_f64(value: f64) -> Self {
        value as f32
    }

    fn write<S: Serializer>(values: &[f32], serializer: S) -> Result<S::Ok, S::Error> {
        crate::bits::single::serialize(values, serializer)
    }

    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f32>, D::Error> {
        crate::bits::single::deserialize(deserializer)
    }
}

/// Values by age: `get(0)` is the newest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(bound = "K: Kept")]
pub(crate) struct Ring<K: Kept> {
    capacity: usize,
    /// Where the next value goes once the ring is full.
    next: usize,
    #[serde(serialize_with = "K::write", deserialize_with = "K::read")]
    values: Vec<K>,
}

impl<K: Kept> Ring<K> {
    /// An empty ring; `capacity` at least 1.
    pub(crate) fn new(capacity: usize) -> Self {
        Ring { capacity: capacity.max(1), next: 0, values: Vec::new() }
    }

    /// True if a ring read from outside is one of this capacity.
    pub(crate) fn fits(&self, capacity: usize) -> bool {
        self.capacity == capacity
            && self.values.len() <= capacity
            && self.next < capacity
            && (self.values.len() == capacity || self.next == 0)
            && !self.values.iter().any(|&value| value.into().is_infinite())
    }

    pub(crate) fn push(&mut self, value: f64) {
        if self.values.len() < self.capacity {
            // All at once: doubling would end at up to twice the capacity.
            self.values.reserve_exact(self.capacity - self.values.len());
            self.values.push(K::from_f64(value));
        } else {
            self.values[self.next] = K::from_f64(value);
            self.next = if self.next + 1 < self.capacity { self.next + 1 } else { 0 };
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    pub(crate) fn get(&self, back: usize) -> Option<f64> {
        self.position(back).map(|position| self.values[position].into())
    }

    /// Overwrites a value; nothing happens if there is none that old.
    pub(crate) fn set(&mut self, back: usize, value: f64) {
        if let Some(position) = self.position(back) {
            self.values[position] = K::from_f64(value);
        }
    }

    fn position(&self, back: usize) -> Option<usize> {
        let len = self.values.len();
        // `next` is below the capacity, and 0 until the ring is full: the sum is below twice the length.
        let position = (self.next + len).checked_sub(1 + back)?;
        (back < len).then_some(if position < len { position } else { position - len })
    }

    pub(crate) fn clear(&mut self) {
        self.values.clear();
        self.next = 0;
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.capacity * size_of::<K>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest() {
        let mut ring = Ring::<f64>::new(3);
        assert_eq!(ring.get(0), None);
        for (pushed, value) in [1.0, 2.0, 3.0, 4.0, 5.0].into_iter().enumerate() {
            ring.push(value);
            assert_eq!(ring.get(0), Some(value));
            assert_eq!(ring.len(), (pushed + 1).min(3));
        }
        assert_eq!([ring.get(2), ring.get(3)], [Some(3.0), None]);
        ring.set(1, 40.0);
        assert_eq!(ring.get(1), Some(40.0));
        ring.clear();
        ring.push(7.0);
        assert_eq!([ring.get(0), ring.get(1)], [Some(7.0), None]);
    }
}
