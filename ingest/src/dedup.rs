//! The dedupe window: which messages are already in Kafka, and which are on their way there.
//!
//! The feed repeats messages, and an MQTT broker redelivers what was not acknowledged. A copy is a message with the
//! same 128-bit hash of (MQTT topic, payload): a key of vehicle, event and time would drop real messages.
//!
//! Invariants:
//! - A message enters the window only with its delivery report ([`Window::delivered`]), so a message that failed is
//!   not mistaken for one that is safe.
//! - A copy of a message in flight waits for the first one ([`Window::wait`]): it is neither sent again nor
//!   acknowledged before the first one's report.
//! - Bounded: an entry falls out after `ttl_ms`, and when there are more than `max_entries` the oldest delivery falls
//!   out first. A copy that comes after its entry fell out is written again. The waiting copies are bounded by the
//!   caller, who holds one slot for each.
//!
//! Left out: a restart. The window is in memory, so after a crash the messages that were delivered and not yet
//! acknowledged (at most the MQTT broker's window) are written once more.

use schemas::EpochMs;
use std::collections::{HashMap, VecDeque};
use twox_hash::XxHash3_128;

/// Identifies a message by its topic and payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageHash(u128);

impl MessageHash {
    /// Hashes topic and payload. The hash is not cryptographic: `seed` should differ from process to process, so
    /// that a publisher cannot prepare a message that collides with another one's.
    pub fn of(seed: u64, topic: &str, payload: &[u8]) -> Self {
        let mut hasher = XxHash3_128::with_seed(seed);
        // The length keeps (`ab`, `c`) and (`a`, `bc`) apart.
        hasher.write(&(topic.len() as u64).to_le_bytes());
        hasher.write(topic.as_bytes());
        hasher.write(payload);
        MessageHash(hasher.finish_128())
    }
}

/// What a message is to the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Not seen: send it. From now on it is in flight, until [`Window::delivered`] or [`Window::failed`].
    New,
    /// A copy of a message in flight: call [`Window::wait`].
    InFlight,
    /// A copy of a message that is safe: acknowledge and drop it.
    Delivered,
}

/// See the module. `W` is what the caller keeps of a waiting copy.
#[derive(Debug)]
pub struct Window<W> {
    ttl_ms: i64,
    max_entries: usize,
    /// Number of the newest delivery of each message.
    delivered: HashMap<MessageHash, u64>,
    /// By time of delivery, oldest in front; an entry whose number is not the map's was renewed since.
    order: VecDeque<(EpochMs, MessageHash)>,
    /// Number of the delivery in front of `order`; they count up.
    oldest: u64,
    in_flight: HashMap<MessageHash, Vec<W>>,
}

impl<W> Window<W> {
    /// A window that remembers `max_entries` deliveries for `ttl_ms` milliseconds each.
    pub fn new(ttl_ms: i64, max_entries: usize) -> Self {
        Window {
            ttl_ms,
            max_entries,
            delivered: HashMap::new(),
            order: VecDeque::new(),
            oldest: 0,
            in_flight: HashMap::new(),
        }
    }

    /// Classifies a message that arrived at `now_ms`.
    pub fn admit(&mut self, now_ms: EpochMs, hash: MessageHash) -> Admission {
        if self.contains(now_ms, hash) {
            return Admission::Delivered;
        }
        if self.in_flight.contains_key(&hash) {
            return Admission::InFlight;
        }
        self.in_flight.insert(hash, Vec::new());
        Admission::New
    }

    /// Keeps a copy until the message in flight is decided. Given back at once when none is in flight.
    #[must_use = "the copy comes back when nothing is in flight"]
    pub fn wait(&mut self, hash: MessageHash, copy: W) -> Option<W> {
        match self.in_flight.get_mut(&hash) {
            Some(copies) => {
                copies.push(copy);
                None
            }
            None => Some(copy),
        }
    }

    /// The message has its delivery report: it enters the window, and its waiting copies are duplicates.
    pub fn delivered(&mut self, now_ms: EpochMs, hash: MessageHash) -> Vec<W> {
        self.insert(now_ms, hash);
        self.in_flight.remove(&hash).unwrap_or_default()
    }

    /// The message was not delivered: it and its copies, which come back, are unknown again.
    pub fn failed(&mut self, hash: MessageHash) -> Vec<W> {
        self.in_flight.remove(&hash).unwrap_or_default()
    }

    /// True for a message that was delivered within the window. Forgets what is too old.
    pub fn contains(&mut self, now_ms: EpochMs, hash: MessageHash) -> bool {
        self.expire(now_ms);
        self.delivered.contains_key(&hash)
    }

    /// Remembers a delivery.
    pub fn insert(&mut self, now_ms: EpochMs, hash: MessageHash) {
        self.expire(now_ms);
        self.delivered.insert(hash, self.oldest + self.order.len() as u64);
        self.order.push_back((now_ms, hash));
        while self.order.len() > self.max_entries {
            self.forget_oldest();
        }
    }

    /// Deliveries remembered.
    pub fn len(&self) -> usize {
        self.delivered.len()
    }

    /// True when no delivery is remembered.
    pub fn is_empty(&self) -> bool {
        self.delivered.is_empty()
    }

    /// A clock that steps back only makes entries stay longer; their number stays bounded.
    fn expire(&mut self, now_ms: EpochMs) {
        while self.order.front().is_some_and(|(at, _)| at.saturating_add(self.ttl_ms) <= now_ms) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, hash)) = self.order.pop_front() {
            if self.delivered.get(&hash) == Some(&self.oldest) {
                self.delivered.remove(&hash);
            }
            self.oldest += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hash(n: u8) -> MessageHash {
        MessageHash::of(1, "/t", &[n])
    }

    #[test]
    fn topic_and_payload_both_count_and_do_not_run_into_each_other() {
        let all = [("ab", "c"), ("a", "bc"), ("abc", ""), ("", "abc"), ("ab", "d")];
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate() {
                let equal = MessageHash::of(7, a.0, a.1.as_bytes()) == MessageHash::of(7, b.0, b.1.as_bytes());
                assert_eq!(equal, i == j, "{a:?} {b:?}");
            }
        }
        assert_ne!(MessageHash::of(1, "a", b"b"), MessageHash::of(2, "a", b"b"), "the seed counts");
    }

    #[test]
    fn a_message_enters_only_after_its_delivery_report() {
        let mut window: Window<&str> = Window::new(1000, 10);
        assert_eq!(window.admit(0, hash(1)), Admission::New);
        assert_eq!(window.admit(1, hash(1)), Admission::InFlight);
        assert_eq!(window.wait(hash(1), "copy"), None);
        assert!(!window.contains(1, hash(1)));
        assert_eq!(window.delivered(2, hash(1)), ["copy"]);
        assert_eq!(window.admit(3, hash(1)), Admission::Delivered);
    }

    #[test]
    fn a_failed_message_is_new_again_and_its_copies_come_back() {
        let mut window: Window<&str> = Window::new(1000, 10);
        assert_eq!(window.admit(0, hash(1)), Admission::New);
        assert_eq!(window.wait(hash(1), "copy"), None);
        assert_eq!(window.failed(hash(1)), ["copy"]);
        assert_eq!(window.admit(1, hash(1)), Admission::New);
        assert_eq!(window.wait(hash(2), "stray"), Some("stray"));
    }

    #[test]
    fn entries_fall_out_by_age_and_the_oldest_first_by_number() {
        let mut window: Window<()> = Window::new(100, 2);
        window.insert(0, hash(1));
        assert!(window.contains(99, hash(1)) && !window.contains(100, hash(1)));
        window.insert(200, hash(1));
        window.insert(201, hash(2));
        window.insert(202, hash(3));
        assert!(!window.contains(203, hash(1)) && window.contains(203, hash(2)) && window.contains(203, hash(3)));
        assert_eq!(window.len(), 2);
    }

    #[test]
    fn a_window_of_nothing_remembers_nothing() {
        for (ttl_ms, max_entries) in [(0, 10), (10, 0)] {
            let mut window: Window<()> = Window::new(ttl_ms, max_entries);
            window.insert(5, hash(1));
            assert!(!window.contains(5, hash(1)) && window.is_empty());
        }
    }

    #[test]
    fn a_message_delivered_twice_at_one_instant_stays_when_the_first_falls_out() {
        let mut window: Window<()> = Window::new(1, 1);
        window.insert(0, hash(2));
        window.insert(0, hash(2));
        assert!(window.contains(0, hash(2)));
    }

    proptest! {
        /// Against a list of (time, hash) searched from the end.
        #[test]
        fn behaves_as_a_list_of_deliveries(
            steps in proptest::collection::vec((0i64..40, 0u8..6, any::<bool>()), 1..200),
            ttl_ms in 1i64..120,
            max_entries in 1usize..6,
        ) {
            let mut window: Window<()> = Window::new(ttl_ms, max_entries);
            let mut list: Vec<(i64, MessageHash)> = Vec::new();
            let mut now = 0;
            for (step, n, insert) in steps {
                now += step;
                if insert {
                    window.insert(now, hash(n));
                    list.push((now, hash(n)));
                }
                list.retain(|(at, _)| at + ttl_ms > now);
                let kept = &list[list.len().saturating_sub(max_entries)..];
                prop_assert_eq!(window.contains(now, hash(n)), kept.iter().any(|(_, h)| *h == hash(n)));
                prop_assert!(window.len() <= max_entries && window.order.len() <= max_entries);
            }
        }
    }
}
