//! Topic names, with the optional prefix of `kafka.topic_prefix`.

/// `telemetry.vehicle`: one normalised event a record.
pub const TELEMETRY_VEHICLE: &str = "telemetry.vehicle";
/// `telemetry.rejected`: original bytes of what could not be decoded; headers say why.
pub const TELEMETRY_REJECTED: &str = "telemetry.rejected";
/// `transit.aggregates`: one closed window row of a query.
pub const TRANSIT_AGGREGATES: &str = "transit.aggregates";
/// `workload.observed`: arrivals per interval and service.
pub const WORKLOAD_OBSERVED: &str = "workload.observed";
/// `workload.forecast`: forecast quantiles per service.
pub const WORKLOAD_FORECAST: &str = "workload.forecast";
/// `allocation.control`: the fleet plan and each node's share.
pub const ALLOCATION_CONTROL: &str = "allocation.control";
/// `executor.status`: heartbeats of nodes.
pub const EXECUTOR_STATUS: &str = "executor.status";
/// `prediction.requests.<service>`.
pub const PREDICTION_REQUESTS: &str = "prediction.requests.";
/// `prediction.results.<service>`.
pub const PREDICTION_RESULTS: &str = "prediction.results.";
/// `prediction.batch.<service>`: requests that take idle cores, see [`Topics::scoring`].
pub const PREDICTION_BATCH: &str = "prediction.batch.";
/// `prediction.scores.<service>`: results of those.
pub const PREDICTION_SCORES: &str = "prediction.scores.";
/// `prediction.rejected`: original bytes of requests that were not served; headers say why.
pub const PREDICTION_REJECTED: &str = "prediction.rejected";
/// `forecaster.state`: one state a series.
pub const FORECASTER_STATE: &str = "forecaster.state";
/// `aggregate.state`: one state a query and partition.
pub const AGGREGATE_STATE: &str = "aggregate.state";

/// How the broker cleans a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cleanup {
    /// Old records go after the retention time.
    Delete,
    /// The newest record of each key stays.
    Compact,
}

impl Cleanup {
    /// The value of Kafka's `cleanup.policy`.
    pub fn as_str(self) -> &'static str {
        match self {
            Cleanup::Delete => "delete",
            Cleanup::Compact => "compact",
        }
    }
}

/// A topic that Barista creates, without its prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSpec {
    /// Name without prefix.
    pub name: String,
    /// Clean-up policy.
    pub cleanup: Cleanup,
    /// True where one partition is required for a total order (`allocation.control`).
    pub single_partition: bool,
    /// True where records carry the broker's append time: the load of a service is counted by it, and deadlines do not
    /// depend on the clocks of senders.
    pub append_time: bool,
}

/// Full topic names under one prefix.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topics {
    prefix: String,
}

impl Topics {
    /// Names that start with `prefix` (may be empty).
    pub fn new(prefix: impl Into<String>) -> Self {
        Topics { prefix: prefix.into() }
    }

    /// The full name of a topic constant of this module.
    pub fn name(&self, topic: &str) -> String {
        format!("{}{topic}", self.prefix)
    }

    /// `prediction.requests.<service>`.
    pub fn requests(&self, service: &str) -> String {
        format!("{}{PREDICTION_REQUESTS}{service}", self.prefix)
    }

    /// `prediction.results.<service>`.
    pub fn results(&self, service: &str) -> String {
        format!("{}{PREDICTION_RESULTS}{service}", self.prefix)
    }

    /// `prediction.batch.<service>`.
    pub fn batch(&self, service: &str) -> String {
        format!("{}{PREDICTION_BATCH}{service}", self.prefix)
    }

    /// `prediction.scores.<service>`.
    pub fn scores(&self, service: &str) -> String {
        format!("{}{PREDICTION_SCORES}{service}", self.prefix)
    }

    /// The topics of a service's background work. They are made when the first work is given, not with the others:
    /// nodes read them from then on.
    pub fn scoring(service: &str) -> Vec<TopicSpec> {
        let spec = |family: &str| TopicSpec {
            name: format!("{family}{service}"),
            cleanup: Cleanup::Delete,
            single_partition: false,
            append_time: false,
        };
        vec![spec(PREDICTION_BATCH), spec(PREDICTION_SCORES)]
    }

    /// The name without this prefix; `None` if it does not carry it.
    pub fn strip<'a>(&self, full: &'a str) -> Option<&'a str> {
        full.strip_prefix(&self.prefix)
    }

    /// Every topic that Barista writes or reads for these services.
    pub fn all<'a>(services: impl IntoIterator<Item = &'a str>) -> Vec<TopicSpec> {
        let fixed = [
            (TELEMETRY_VEHICLE, Cleanup::Delete, false),
            (TELEMETRY_REJECTED, Cleanup::Delete, false),
            (TRANSIT_AGGREGATES, Cleanup::Delete, false),
            (WORKLOAD_OBSERVED, Cleanup::Delete, true),
            (WORKLOAD_FORECAST, Cleanup::Delete, true),
            (ALLOCATION_CONTROL, Cleanup::Compact, true),
            (EXECUTOR_STATUS, Cleanup::Compact, true),
            (PREDICTION_REJECTED, Cleanup::Delete, false),
            (FORECASTER_STATE, Cleanup::Compact, true),
            (AGGREGATE_STATE, Cleanup::Compact, false),
        ];
        let mut specs: Vec<TopicSpec> = fixed
            .into_iter()
            .map(|(name, cleanup, single_partition)| TopicSpec {
                name: name.to_owned(),
                cleanup,
                single_partition,
                append_time: false,
            })
            .collect();
        for service in services {
            for family in [PREDICTION_REQUESTS, PREDICTION_RESULTS] {
                specs.push(TopicSpec {
                    name: format!("{family}{service}"),
                    cleanup: Cleanup::Delete,
                    single_partition: false,
                    append_time: family == PREDICTION_REQUESTS,
                });
            }
        }
        specs
    }
}

/// The consumer group of a service's executors: one group a service, so that scaling one rebalances no other.
pub fn executor_group(prefix: &str, service: &str) -> String {
    format!("{prefix}barista.executor.{service}")
}

/// The consumer group of the executors that do a service's background work.
pub fn batch_group(prefix: &str, service: &str) -> String {
    format!("{prefix}barista.batch.{service}")
}

/// The consumer group of a role other than the executor, such as `barista.aggregate`.
pub fn role_group(prefix: &str, role: &str) -> String {
    format!("{prefix}barista.{role}")
}
