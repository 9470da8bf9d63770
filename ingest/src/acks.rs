//! Acknowledgements in the order of arrival, per connection.
//!
//! MQTT 3.1.1 asks a client to send PUBACKs in the order in which the PUBLISHes came [MQTT-4.6.0-2], and rumqttd ends
//! a connection that does otherwise. Deliveries to Kafka finish in any order (one partition may be slow), so an
//! acknowledgement is released only when everything received before it on the same connection is done.
//!
//! Invariants:
//! - Acknowledgements come out in the order in which their messages went in, each once.
//! - Nothing of an older connection ever comes out: its packet ids mean other messages on the new one, and an
//!   acknowledgement of one of those would lose it. The broker redelivers instead.
//! - A message that is never completed holds back all later ones of its connection: the caller ends the connection.

use std::collections::VecDeque;

/// A message's place in the order of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    connection: u64,
    index: u64,
}

impl Ticket {
    /// Number of the connection that the message came on.
    pub fn connection(self) -> u64 {
        self.connection
    }
}

/// The newest connection's messages that are not yet acknowledged. Bounded by MQTT itself: a broker cannot have more
/// than 65,535 messages unacknowledged on a connection.
#[derive(Debug)]
pub struct AckOrder<A> {
    connection: u64,
    /// Index of the first element of `waiting`.
    first: u64,
    waiting: VecDeque<Entry<A>>,
}

#[derive(Debug)]
struct Entry<A> {
    ack: A,
    done: bool,
}

impl<A> Default for AckOrder<A> {
    fn default() -> Self {
        AckOrder { connection: 0, first: 0, waiting: VecDeque::new() }
    }
}

impl<A> AckOrder<A> {
    /// Adds the next message received on `connection`. A higher number than before drops all that is left of the
    /// older connection; a lower one gets a ticket that is stale from the start.
    pub fn push(&mut self, connection: u64, ack: A) -> Ticket {
        if connection > self.connection {
            self.connection = connection;
            self.first = 0;
            self.waiting.clear();
        } else if connection < self.connection {
            return Ticket { connection, index: 0 };
        }
        let index = self.first + self.waiting.len() as u64;
        self.waiting.push_back(Entry { ack, done: false });
        Ticket { connection, index }
    }

    /// Marks a message as done and returns the acknowledgements that are free now, in order; `None` if its connection
    /// is not the newest any more.
    pub fn complete(&mut self, ticket: Ticket) -> Option<Vec<A>> {
        if ticket.connection != self.connection {
            return None;
        }
        let offset = ticket.index.checked_sub(self.first).and_then(|offset| usize::try_from(offset).ok());
        if let Some(entry) = offset.and_then(|offset| self.waiting.get_mut(offset)) {
            entry.done = true;
        }
        let free = self.waiting.iter().take_while(|entry| entry.done).count();
        self.first += free as u64;
        Some(self.waiting.drain(..free).map(|entry| entry.ack).collect())
    }

    /// Messages of the newest connection without a released acknowledgement.
    pub fn outstanding(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn acknowledgements_wait_for_everything_before_them() {
        let mut order = AckOrder::default();
        let tickets: Vec<Ticket> = (1..=4).map(|id| order.push(1, id)).collect();
        assert_eq!(order.complete(tickets[1]), Some(vec![]));
        assert_eq!(order.complete(tickets[0]), Some(vec![1, 2]));
        assert_eq!(order.complete(tickets[3]), Some(vec![]));
        assert_eq!(order.complete(tickets[2]), Some(vec![3, 4]));
        assert_eq!(order.complete(tickets[2]), Some(vec![]), "completing twice releases nothing");
        assert_eq!(order.outstanding(), 0);
    }

    #[test]
    fn nothing_of_an_older_connection_comes_out() {
        let mut order = AckOrder::default();
        let old = order.push(1, 11);
        let new = order.push(2, 21);
        assert_eq!(order.complete(old), None);
        let late = order.push(1, 12);
        assert_eq!(order.complete(late), None);
        assert_eq!(order.complete(new), Some(vec![21]));
    }

    proptest! {
        #[test]
        fn whatever_the_order_of_completion_acks_come_out_in_order_of_arrival(
            priorities in proptest::collection::vec(any::<u32>(), 1..80),
            reconnect_after in proptest::option::of(0usize..80),
        ) {
            let mut order = AckOrder::default();
            let mut released = Vec::new();
            let mut tickets: Vec<(u32, usize, Ticket)> = Vec::new();
            for (i, priority) in priorities.iter().enumerate() {
                let connection = if reconnect_after.is_some_and(|at| i >= at) { 2 } else { 1 };
                tickets.push((*priority, i, order.push(connection, i)));
            }
            let newest = tickets.last().map(|(_, _, t)| t.connection).unwrap_or(1);
            let expected: Vec<usize> =
                tickets.iter().filter(|(_, _, t)| t.connection == newest).map(|(_, i, _)| *i).collect();
            tickets.sort_by_key(|(priority, i, _)| (*priority, *i));
            for (_, _, ticket) in tickets {
                let free = order.complete(ticket);
                prop_assert_eq!(free.is_none(), ticket.connection != newest);
                released.extend(free.into_iter().flatten());
            }
            prop_assert_eq!(released, expected);
        }
    }
}
