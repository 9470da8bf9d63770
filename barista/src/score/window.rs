//! Rows on their way, and their lines in the order of the input. Pure.
//!
//! Invariants:
//! - Lines leave in the order in which their rows were sent, each once.
//! - An answer to a row that does not wait (a duplicate, another run's) changes nothing.

use super::RowId;
use std::collections::{HashMap, VecDeque};

/// The rows on their way.
#[derive(Debug)]
pub struct Window {
    capacity: usize,
    /// In the order of sending; a line once its answer is there.
    rows: VecDeque<(RowId, Option<String>)>,
    /// Number of each row in the order of sending, since the beginning.
    places: HashMap<RowId, u64>,
    /// Rows that have left at the front.
    gone: u64,
}

impl Window {
    /// Room for so many rows, at least one.
    pub fn new(capacity: usize) -> Self {
        Window { capacity: capacity.max(1), rows: VecDeque::new(), places: HashMap::new(), gone: 0 }
    }

    /// True when another row may be sent.
    pub fn has_room(&self) -> bool {
        self.rows.len() < self.capacity
    }

    /// True when nothing is on its way.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// A row is sent.
    pub fn sent(&mut self, row: RowId) {
        self.places.insert(row, self.gone + self.rows.len() as u64);
        self.rows.push_back((row, None));
    }

    /// A row has its line; true when it was waited for.
    pub fn answered(&mut self, row: RowId, line: impl FnOnce() -> String) -> bool {
        let Some(place) = self.places.get(&row) else { return false };
        let Some((_, slot)) = usize::try_from(place - self.gone).ok().and_then(|i| self.rows.get_mut(i)) else {
            return false;
        };
        let first = slot.is_none();
        if first {
            *slot = Some(line());
        }
        first
    }

    /// The next line in the order of the input, if it is there.
    pub fn next_line(&mut self) -> Option<String> {
        let (row, line) = self.rows.front_mut()?;
        let (row, line) = (*row, line.take()?);
        self.rows.pop_front();
        self.places.remove(&row);
        self.gone += 1;
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Rows sent while there is room, answered in any order and more than once: every line once, in order.
        #[test]
        fn lines_leave_once_and_in_order(
            capacity in 1usize..20, n in 0i64..60, picks in proptest::collection::vec((0usize..20, any::<bool>()), 400),
        ) {
            let mut window = Window::new(capacity);
            let (mut next, mut out, mut open) = (0i64, Vec::new(), Vec::new());
            let row = |number| RowId { partition: (number % 3) as i32, number };
            for (pick, again) in picks {
                while window.has_room() && next < n {
                    window.sent(row(next));
                    open.push(next);
                    next += 1;
                }
                prop_assert!(open.len() <= capacity);
                if open.is_empty() { break; }
                let number = open.remove(pick % open.len());
                prop_assert!(window.answered(row(number), || number.to_string()));
                if again {
                    prop_assert!(!window.answered(row(number), || "twice".to_owned()));
                    prop_assert!(!window.answered(row(number + 1000), || "strange".to_owned()));
                }
                while let Some(line) = window.next_line() { out.push(line); }
            }
            for number in open {
                window.answered(row(number), || number.to_string());
            }
            while let Some(line) = window.next_line() { out.push(line); }
            prop_assert!(window.is_empty());
            prop_assert_eq!(out, (0..next).map(|i| i.to_string()).collect::<Vec<_>>());
        }
    }
}
