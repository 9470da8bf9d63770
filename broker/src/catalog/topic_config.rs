//! Settings of topics: which there are, what they mean, and how clients may set them.
//!
//! Every setting listed is honoured. Settings that Apache Kafka knows and this broker does not are
//! refused by name, not swallowed; `min.insync.replicas` and `compression.type` are taken with the
//! only value that is true here.

use std::collections::BTreeMap;

use kafka_protocol::ResponseError;

use super::Refused;
use crate::Config;
use crate::log::rules::{Cleanup, LogRules};

/// Type of a setting, as `DescribeConfigs` numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Int = 3,
    Long = 5,
    Double = 6,
    Text = 2,
    List = 7,
}

/// A setting of a topic.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) doc: &'static str,
    default: fn(&Config) -> String,
    check: fn(&str) -> bool,
}

impl Setting {
    /// Its value where nobody set it.
    pub(crate) fn default_value(&self, config: &Config) -> String {
        (self.default)(config)
    }
}

fn number(text: &str, min: i64, max: i64) -> bool {
    text.parse::<i64>().is_ok_and(|value| (min..=max).contains(&value))
}

fn unlimited(value: Option<i64>) -> String {
    value.unwrap_or(-1).to_string()
}

/// All settings, by name.
pub(crate) const SETTINGS: &[Setting] = &[
    Setting {
        name: "cleanup.policy",
        kind: Kind::List,
        doc: "delete old segments, compact to the newest record per key, or both",
        default: |_| "delete".into(),
        check: |text| parse_cleanup(text).is_some(),
    },
    Setting {
        name: "compression.type",
        kind: Kind::Text,
        doc: "batches are stored as the producer compressed them",
        default: |_| "producer".into(),
        check: |text| text == "producer",
    },
    Setting {
        name: "delete.retention.ms",
        kind: Kind::Long,
        doc: "how long compaction keeps tombstones",
        default: |_| "86400000".into(),
        check: |text| number(text, 0, i64::MAX),
    },
    Setting {
        name: "max.message.bytes",
        kind: Kind::Int,
        doc: "largest record batch",
        default: |config| config.max_message_bytes.to_string(),
        check: |text| number(text, 0, i32::MAX.into()),
    },
    Setting {
        name: "message.timestamp.type",
        kind: Kind::Text,
        doc: "CreateTime keeps the producer's time, LogAppendTime stamps the broker's",
        default: |_| "CreateTime".into(),
        check: |text| matches!(text, "CreateTime" | "LogAppendTime"),
    },
    Setting {
        name: "min.cleanable.dirty.ratio",
        kind: Kind::Double,
        doc: "share of uncompacted bytes from which compaction runs",
        default: |_| "0.5".into(),
        check: |text| text.parse::<f64>().is_ok_and(|ratio| (0.0..=1.0).contains(&ratio)),
    },
    Setting {
        name: "min.compaction.lag.ms",
        kind: Kind::Long,
        doc: "records younger than this are not compacted",
        default: |_| "0".into(),
        check: |text| number(text, 0, i64::MAX),
    },
    Setting {
        name: "min.insync.replicas",
        kind: Kind::Int,
        doc: "there is one replica",
        default: |_| "1".into(),
        check: |text| text == "1",
    },
    Setting {
        name: "retention.bytes",
        kind: Kind::Long,
        doc: "size of a partition above which old segments are deleted, -1 for no limit",
        default: |config| unlimited(config.retention_bytes),
        check: |text| number(text, -1, i64::MAX),
    },
    Setting {
        name: "retention.ms",
        kind: Kind::Long,
        doc: "age from which segments are deleted, -1 for never",
        default: |config| unlimited(config.retention_ms),
        check: |text| number(text, -1, i64::MAX),
    },
    Setting {
        name: "segment.bytes",
        kind: Kind::Int,
        doc: "size at which a segment is closed",
        default: |config| config.segment_bytes.to_string(),
        check: |text| number(text, 1024, (i32::MAX).into()),
    },
    Setting {
        name: "segment.ms",
        kind: Kind::Long,
        doc: "age at which the next record closes a segment",
        default: |_| "604800000".into(),
        check: |text| number(text, 1, i64::MAX),
    },
];

/// The setting of this name.
pub(crate) fn setting(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

fn parse_cleanup(text: &str) -> Option<Cleanup> {
    let mut cleanup = Cleanup { delete: false, compact: false };
    for word in text.split(',') {
        match word.trim() {
            "delete" => cleanup.delete = true,
            "compact" => cleanup.compact = true,
            _ => return None,
        }
    }
    Some(cleanup)
}

/// Checks one setting that a client wants.
pub(crate) fn check(name: &str, value: &str) -> Result<(), Refused> {
    let refuse = |message| Err(Refused::new(ResponseError::InvalidConfig, message));
    match setting(name) {
        None => refuse(format!("setting `{name}` is not known to this broker")),
        Some(setting) if !(setting.check)(value) => {
            refuse(format!("`{value}` is not a value that this broker can give `{name}`"))
        }
        Some(_) => Ok(()),
    }
}

/// The value of a setting: what was set, or the default.
pub(crate) fn effective(setting: &Setting, set: &BTreeMap<String, String>, config: &Config) -> String {
    set.get(setting.name).cloned().unwrap_or_else(|| setting.default_value(config))
}

/// What the settings of a topic mean for its logs.
pub(crate) fn rules(set: &BTreeMap<String, String>, config: &Config) -> LogRules {
    let text = |name: &str| match setting(name) {
        Some(setting) => effective(setting, set, config),
        None => unreachable!("setting {name} is in the table"),
    };
    // Values were checked when they were set, and defaults are valid: parsing cannot fail.
    let long = |name: &str| text(name).parse::<i64>().unwrap_or(i64::MAX);
    let limit = |name: &str| Some(long(name)).filter(|value| *value >= 0);
    LogRules {
        cleanup: parse_cleanup(&text("cleanup.policy")).unwrap_or(Cleanup { delete: false, compact: false }),
        retention_ms: limit("retention.ms"),
        retention_bytes: limit("retention.bytes"),
        segment_bytes: u64::try_from(long("segment.bytes")).unwrap_or(u64::MAX),
        segment_ms: long("segment.ms"),
        max_message_bytes: u32::try_from(long("max.message.bytes")).unwrap_or(u32::MAX),
        log_append_time: text("message.timestamp.type") == "LogAppendTime",
        delete_retention_ms: long("delete.retention.ms"),
        min_dirty_ratio: text("min.cleanable.dirty.ratio").parse().unwrap_or(1.0),
        min_compaction_lag_ms: long("min.compaction.lag.ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_a_value_the_setting_accepts() {
        let mut config = Config::new("/nowhere");
        for keep in [None, Some(0), Some(5000)] {
            config.retention_ms = keep;
            config.retention_bytes = keep;
            for setting in SETTINGS {
                assert_eq!(check(setting.name, &setting.default_value(&config)), Ok(()));
            }
        }
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        for (name, value) in [
            ("flush.ms", "1000"),
            ("cleanup.policy", "shred"),
            ("cleanup.policy", ""),
            ("compression.type", "gzip"),
            ("min.insync.replicas", "2"),
            ("retention.ms", "-2"),
            ("retention.ms", "a week"),
            ("segment.bytes", "10"),
        ] {
            let refused = check(name, value).err().map(|r| (r.error, r.message));
            let Some((error, message)) = refused else { panic!("{name}={value} was accepted") };
            assert_eq!(error, ResponseError::InvalidConfig);
            assert!(message.contains(name), "{message}");
        }
    }

    #[test]
    fn settings_become_rules() {
        let config = Config::new("/nowhere");
        let set = |pairs: &[(&str, &str)]| {
            let set = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            rules(&set, &config)
        };
        let defaults = set(&[]);
        assert_eq!(defaults.retention_ms, config.retention_ms);
        assert_eq!(defaults.cleanup, Cleanup { delete: true, compact: false });
        let both = set(&[("cleanup.policy", "compact, delete"), ("retention.ms", "-1")]);
        assert_eq!(both.cleanup, Cleanup { delete: true, compact: true });
        assert_eq!(both.retention_ms, None);
        assert!(set(&[("message.timestamp.type", "LogAppendTime")]).log_append_time);
    }
}
