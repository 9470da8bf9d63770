//! The end of a group's member.

use rdkafka::consumer::{BaseConsumer, Consumer};
use runtime::{Bus, SourceEvent, SourceMode, SourceSpec};
use schemas::Topics;
use std::time::Duration;
use tests::{Brokers, PATIENCE, unique};

/// A member that goes without a word keeps its partitions until the session time-out, and nobody reads them: scaling
/// a service down would stall it for that long. So a process closes its bus before it ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_closed_bus_has_left_its_groups() {
    let brokers = Brokers::embedded().await;
    let bus = brokers.bus(&(unique("leaving-") + "."));
    bus.create_topics(&Topics::all(["delay"])).await.unwrap();
    let group = unique("leaving-group-");
    let mode = SourceMode::Group { group: group.clone(), instance_id: None };
    let spec = SourceSpec { topics: vec![bus.topics().requests("delay")], mode, buffer: 16 };
    let mut source = bus.source(spec).await.unwrap();
    while !matches!(source.next().await.unwrap(), SourceEvent::Assigned(p) if !p.is_empty()) {}

    let observer: BaseConsumer =
        rdkafka::ClientConfig::new().set("bootstrap.servers", &brokers.kafka).create().unwrap();
    let members = || {
        let list = observer.fetch_group_list(Some(&group), PATIENCE).unwrap();
        list.groups().iter().map(|g| g.members().len()).sum::<usize>()
    };
    assert_eq!(members(), 1);
    drop(source);
    assert!(bus.close(Duration::from_secs(30)).await);
    assert_eq!(members(), 0);
    drop(bus);
    brokers.shutdown().await;
}
