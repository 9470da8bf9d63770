//! What a topic's configuration asks of its logs, in the form the log works with.

/// How old data is disposed of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cleanup {
    /// Delete whole segments by age and size.
    pub(crate) delete: bool,
    /// Keep the newest record of each key.
    pub(crate) compact: bool,
}

/// Effective settings of the logs of one topic.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LogRules {
    pub(crate) cleanup: Cleanup,
    /// `None` for ever.
    pub(crate) retention_ms: Option<i64>,
    /// `None` without limit.
    pub(crate) retention_bytes: Option<i64>,
    pub(crate) segment_bytes: u64,
    pub(crate) segment_ms: i64,
    pub(crate) max_message_bytes: u32,
    /// Whether records get the time of their append instead of the producer's.
    pub(crate) log_append_time: bool,
    /// How long compaction keeps a tombstone after it has become the newest of its key.
    pub(crate) delete_retention_ms: i64,
    /// Share of bytes not compacted yet from which a pass is worth it, 0 to 1.
    pub(crate) min_dirty_ratio: f64,
    /// Records younger than this are not compacted.
    pub(crate) min_compaction_lag_ms: i64,
}

#[cfg(test)]
impl LogRules {
    /// Settings for tests: small segments, nothing deleted.
    pub(crate) fn small() -> Self {
        Self {
            cleanup: Cleanup { delete: true, compact: false },
            retention_ms: None,
            retention_bytes: None,
            segment_bytes: 4096,
            segment_ms: i64::MAX,
            max_message_bytes: 1 << 20,
            log_append_time: false,
            delete_retention_ms: 0,
            min_dirty_ratio: 0.0,
            min_compaction_lag_ms: 0,
        }
    }
}
