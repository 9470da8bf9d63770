//! What may be taken, in order of class, deadline and arrival. Pure.
//!
//! Requests of one service mostly come in the order of their deadlines, because they have the same SLO. Each class is
//! therefore a sorted run to which such requests are appended, and a tree for those that come before its end: the usual
//! request costs no comparison but one, the unusual one the logarithm of the others.

use super::{Class, Entry, Place};
use std::collections::{BTreeMap, VecDeque};

/// Requests of one class.
#[derive(Debug)]
struct Line<T> {
    /// Ascending by deadline, then arrival.
    run: VecDeque<(u64, Entry<T>)>,
    /// Those whose deadline was before that of the run's last when they came.
    early: BTreeMap<(i64, u64), Entry<T>>,
}

/// All classes.
#[derive(Debug)]
pub(super) struct Lines<T> {
    lines: [Line<T>; Class::COUNT],
    len: usize,
}

impl<T> Line<T> {
    fn is_empty(&self) -> bool {
        self.run.is_empty() && self.early.is_empty()
    }

    fn insert(&mut self, sequence: u64, entry: Entry<T>) {
        match self.run.back() {
            Some((_, last)) if last.deadline_ms > entry.deadline_ms => {
                self.early.insert((entry.deadline_ms, sequence), entry);
            }
            _ => self.run.push_back((sequence, entry)),
        }
    }

    /// True when the first is in the tree.
    fn first_is_early(&self) -> bool {
        match (self.early.first_key_value(), self.run.front()) {
            (Some((key, _)), Some((sequence, first))) => *key < (first.deadline_ms, *sequence),
            (early, _) => early.is_some(),
        }
    }

    fn first(&self) -> Option<&Entry<T>> {
        if self.early.is_empty() || !self.first_is_early() {
            return self.run.front().map(|(_, entry)| entry);
        }
        self.early.first_key_value().map(|(_, entry)| entry)
    }

    fn pop_first(&mut self) -> Option<Entry<T>> {
        if self.early.is_empty() || !self.first_is_early() {
            return self.run.pop_front().map(|(_, entry)| entry);
        }
        self.early.pop_first().map(|(_, entry)| entry)
    }

    /// True when the last is in the tree.
    fn last_is_early(&self) -> bool {
        match (self.early.last_key_value(), self.run.back()) {
            (Some((key, _)), Some((sequence, last))) => *key > (last.deadline_ms, *sequence),
            (early, _) => early.is_some(),
        }
    }

    fn pop_last(&mut self) -> Option<Entry<T>> {
        if self.last_is_early() {
            return self.early.pop_last().map(|(_, entry)| entry);
        }
        self.run.pop_back().map(|(_, entry)| entry)
    }

    fn last_deadline_ms(&self) -> Option<i64> {
        let early = self.early.last_key_value().map(|((deadline_ms, _), _)| *deadline_ms);
        early.max(self.run.back().map(|(_, entry)| entry.deadline_ms))
    }

    fn iter(&self) -> impl Iterator<Item = &Entry<T>> {
        self.early.values().chain(self.run.iter().map(|(_, entry)| entry))
    }

    fn rows_until(&self, deadline_ms: i64) -> u64 {
        let early = self.early.range(..=(deadline_ms, u64::MAX)).map(|(_, entry)| entry);
        let run = self.run.iter().map(|(_, entry)| entry).take_while(|entry| entry.deadline_ms <= deadline_ms);
        early.chain(run).map(|entry| u64::from(entry.rows)).sum()
    }

    fn extract(&mut self, class: Class, unwanted: &mut impl FnMut(&T) -> bool, out: &mut Vec<(Place, Entry<T>)>) {
        for _ in 0..self.run.len() {
            let Some((sequence, entry)) = self.run.pop_front() else { break };
            if unwanted(&entry.item) {
                out.push(((class, entry.deadline_ms, sequence), entry));
            } else {
                self.run.push_back((sequence, entry));
            }
        }
        let keys: Vec<(i64, u64)> = self.early.iter().filter(|(_, e)| unwanted(&e.item)).map(|(key, _)| *key).collect();
        for key in keys {
            out.extend(self.early.remove(&key).map(|entry| ((class, key.0, key.1), entry)));
        }
    }
}

impl<T> Lines<T> {
    pub(super) fn new() -> Self {
        let line = || Line { run: VecDeque::new(), early: BTreeMap::new() };
        Lines { lines: [line(), line(), line()], len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `sequence` is larger than that of every request before.
    pub(super) fn insert(&mut self, sequence: u64, entry: Entry<T>) {
        self.len += 1;
        self.lines[entry.class as usize].insert(sequence, entry);
    }

    /// The first request of a class.
    pub(super) fn first_of(&self, class: Class) -> Option<&Entry<T>> {
        self.lines[class as usize].first()
    }

    /// The first of all.
    pub(super) fn first(&self) -> Option<&Entry<T>> {
        self.lines.iter().find_map(Line::first)
    }

    pub(super) fn pop_first_of(&mut self, class: Class) -> Option<Entry<T>> {
        let first = self.lines[class as usize].pop_first();
        self.len -= usize::from(first.is_some());
        first
    }

    /// Class of the last of all.
    pub(super) fn last_class(&self) -> Option<Class> {
        Class::ALL.into_iter().rev().find(|class| !self.lines[*class as usize].is_empty())
    }

    pub(super) fn pop_last(&mut self) -> Option<Entry<T>> {
        let last = self.lines[self.last_class()? as usize].pop_last();
        self.len -= usize::from(last.is_some());
        last
    }

    /// Latest deadline in a class.
    pub(super) fn last_deadline_ms(&self, class: Class) -> Option<i64> {
        self.lines[class as usize].last_deadline_ms()
    }

    /// Rows of a class whose deadline is not after this one.
    pub(super) fn rows_until(&self, class: Class, deadline_ms: i64) -> u64 {
        self.lines[class as usize].rows_until(deadline_ms)
    }

    /// Requests of a class, in no order.
    pub(super) fn of_class(&self, class: Class) -> impl Iterator<Item = &Entry<T>> {
        self.lines[class as usize].iter()
    }

    /// Requests, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry<T>> {
        self.lines.iter().flat_map(Line::iter)
    }

    /// Takes out what `unwanted` names, each with its place, in no order.
    pub(super) fn extract(&mut self, mut unwanted: impl FnMut(&T) -> bool) -> Vec<(Place, Entry<T>)> {
        let mut out = Vec::new();
        for class in Class::ALL {
            self.lines[class as usize].extract(class, &mut unwanted, &mut out);
        }
        self.len -= out.len();
        out
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Insert(usize, i64),
        PopFirst,
        PopLast,
        Extract(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0usize..3, 0i64..30).prop_map(|(class, deadline_ms)| Step::Insert(class, deadline_ms)),
            3 => Just(Step::PopFirst),
            1 => Just(Step::PopLast),
            1 => (2u64..5).prop_map(Step::Extract),
        ]
    }

    proptest! {
        /// A sorted list says what is right.
        #[test]
        fn lines_are_a_sorted_list(steps in proptest::collection::vec(step(), 1..150), asked in 0i64..30) {
            let mut lines = Lines::new();
            let mut list: Vec<Place> = Vec::new();
            for (sequence, step) in (0u64..).zip(steps) {
                match step {
                    Step::Insert(class, deadline_ms) => {
                        let class = Class::ALL[class];
                        let entry = Entry { class, order: None, deadline_ms, rows: 1, queued_ms: 0, item: sequence };
                        lines.insert(sequence, entry);
                        list.push((class, deadline_ms, sequence));
                        list.sort_unstable();
                    }
                    Step::PopFirst => {
                        let class = lines.first().map(|e| e.class);
                        let popped = class.and_then(|class| lines.pop_first_of(class));
                        let expected = (!list.is_empty()).then(|| list.remove(0));
                        prop_assert_eq!(popped.map(|e| e.item), expected.map(|place| place.2));
                    }
                    Step::PopLast => prop_assert_eq!(lines.pop_last().map(|e| e.item), list.pop().map(|place| place.2)),
                    Step::Extract(modulo) => {
                        let mut out: Vec<Place> = lines.extract(|item| item % modulo == 0).iter().map(|o| o.0).collect();
                        out.sort_unstable();
                        let (gone, stay) = list.into_iter().partition(|place| place.2 % modulo == 0);
                        list = stay;
                        prop_assert_eq!(out, gone);
                    }
                }
                prop_assert_eq!(lines.len(), list.len());
                prop_assert_eq!(lines.is_empty(), list.is_empty());
                prop_assert_eq!(lines.iter().count(), list.len());
                prop_assert_eq!(lines.first().map(|e| e.item), list.first().map(|place| place.2));
                prop_assert_eq!(lines.last_class(), list.last().map(|place| place.0));
                for class in Class::ALL {
                    let of_class: Vec<&Place> = list.iter().filter(|place| place.0 == class).collect();
                    prop_assert_eq!(lines.of_class(class).count(), of_class.len());
                    prop_assert_eq!(lines.first_of(class).map(|e| e.item), of_class.first().map(|place| place.2));
                    prop_assert_eq!(lines.last_deadline_ms(class), of_class.last().map(|place| place.1));
                    let until = of_class.iter().filter(|place| place.1 <= asked).count();
                    prop_assert_eq!(lines.rows_until(class, asked), until as u64);
                }
            }
        }
    }
}
