//! Client checks, run with the same expectations against the embedded broker and Apache Kafka.
//!
//! A check is an async function over a [`harness::Target`]; [`conformance!`] makes two tests of it.
//! The one against Apache Kafka runs where `BARISTA_TEST_KAFKA=host:port` names a server; without
//! it the test says loudly that it was skipped, or fails where `BARISTA_REQUIRE_REAL=1`. Only what
//! a broker says it cannot do ([`broker::capabilities`]) changes an expectation: then the check is
//! that it says so at once.
//!
//! `clients` runs clients nobody here wrote against both and compares what they observe; `crash` and
//! `faults` hold what only makes sense for a broker whose process and files we own; `latency` and
//! `throughput` are measured by hand (docs/benchmarks/broker.md).
#![allow(clippy::unwrap_used, reason = "tests")]

mod admin;
mod children;
mod clients;
mod crash;
mod faults;
mod fetch;
mod groups;
mod harness;
mod java;
mod kcat;
mod latency;
mod rebalance;
mod records;
mod throughput;
mod transactions;
mod wire;

/// Makes two tests of each check.
macro_rules! conformance {
    ($($module:ident: $($check:ident),+;)+) => {
        mod embedded {
            $(mod $module { $(
                #[test]
                fn $check() {
                    crate::harness::on_embedded(stringify!($check), |target| {
                        Box::pin(crate::$module::$check(target))
                    });
                }
            )+ })+
        }
        mod apache {
            $(mod $module { $(
                #[test]
                fn $check() {
                    crate::harness::on_apache(stringify!($check), |target| {
                        Box::pin(crate::$module::$check(target))
                    });
                }
            )+ })+
        }
    };
}

conformance! {
    records:
        keys_headers_timestamps_and_tombstones, codecs, large_records, oversized_record_is_refused,
        idempotent_producer_keeps_order, repeated_batches_are_appended_once,
        concurrent_producers_keep_their_order, append_time_is_stamped, compacted_topic_needs_keys;
    fetch:
        watermarks, offsets_for_times, seek, long_poll_wakes_at_once, fetch_waits_for_min_bytes,
        out_of_range_offset_is_reset, paused_partition_stays_silent;
    groups:
        commit_and_resume, listed_and_described, deleted, offsets_of_strangers_are_refused,
        killed_consumer_is_evicted, silent_consumer_is_evicted, next_generation_protocol;
    rebalance:
        range_shares_and_takes_over, cooperative_keeps_what_stays, static_member_restarts_undisturbed,
        duplicate_static_member_is_fenced, patterns_find_new_topics;
    admin:
        topics_are_created_and_deleted, bad_topics_are_refused, settings_are_described_and_changed,
        partitions_are_added, records_are_deleted, produce_creates_topic, consume_creates_no_topic,
        recreated_topic_starts_empty;
    kcat: produce_consume_and_list;
    java: console_tools, transactions_tool;
    transactions: commit_and_abort, open_transaction_is_hidden, zombie_is_fenced;
}
