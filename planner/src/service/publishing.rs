//! Deciding, publishing, and what follows from a published plan.

use super::planner::Planner;
use crate::error::Error;
use crate::metrics::{ActionLabel, ServiceLabel};
use crate::model::{Plan, PlanInputs, PreviousDemand, Stamp};
use crate::plan;
use crate::provider::NodeOrder;
use runtime::OutRecord;
use schemas::EpochMs;
use schemas::allocation::{FleetPlan, NODE_KEY_PREFIX, NodeAction, NodeAllocation, NodePlan, PlanMode};
use schemas::topics::ALLOCATION_CONTROL;

impl Planner {
    /// Decides, publishes, acts.
    pub(super) async fn decide(&mut self, now_ms: EpochMs) -> Result<(), Error> {
        let why = self.urgent.take();
        self.plan_at_ms = now_ms + self.config.period.as_ms();
        self.planned_at_ms = now_ms;
        let inputs = self.inputs(now_ms).await;
        let began = tokio::time::Instant::now();
        let decided = plan(&inputs);
        self.metrics.plan_seconds.observe(began.elapsed().as_secs_f64());
        if let Some(why) = &why {
            tracing::info!(why, "decided out of turn");
        }
        let (mut published, mut changed) = (decided.clone(), Vec::new());
        if self.config.mode == PlanMode::Apply {
            published = self.with_what_is_kept(&decided, now_ms);
            changed = self.fleet.changed_by(&decided, &published);
        }
        if !self.publish(&inputs, &published, &changed).await? {
            return Ok(());
        }
        self.note(&published);
        if self.config.mode == PlanMode::Apply {
            self.fleet.apply(&decided, &published, now_ms);
            self.naming = decided.naming;
            self.start_nodes(&decided).await?;
        }
        self.last = Some(decided);
        self.published = Some(published);
        if let Some(epoch) = self.office.epoch() {
            self.context.readiness.set("planner", true, format!("plan {epoch}-{}", self.sequence));
        }
        Ok(())
    }

    /// The fleet record, then the share of every node that changes, in this order in the log and in one transaction.
    /// False if it was not committed: this planner does not lead any more.
    async fn publish(&mut self, inputs: &PlanInputs, decided: &Plan, changed: &[NodePlan]) -> Result<bool, Error> {
        let Some(epoch) = self.office.epoch() else { return Ok(false) };
        self.sequence += 1;
        let stamp = Stamp { epoch, sequence: self.sequence, created_at_ms: inputs.now_ms, mode: self.config.mode };
        self.ledger.accrue(self.fleet.held(&inputs.flavors), inputs.now_ms);
        let cost = self.ledger.so_far(inputs);
        self.metrics.static_peak_usd.set(cost.usd_static_peak);
        let record = FleetPlan { cost: Some(cost), ..decided.clone().into_record(stamp) };
        let topic = self.context.bus.topics().name(ALLOCATION_CONTROL);
        let mut records = vec![OutRecord::message(&topic, &record)?];
        for node in changed {
            records.push(OutRecord::message(&topic, &share(node, decided, stamp))?);
        }
        let committed = self.commit(records).await?;
        if committed {
            self.metrics.plans.inc();
        }
        Ok(committed)
    }

    /// Remembers demands, logs changes, sets gauges.
    fn note(&mut self, decided: &Plan) {
        self.previous.clear();
        for s in &decided.services {
            self.previous.push(PreviousDemand {
                service: s.service.clone(),
                demand_rps: s.demand_rps,
                justified_at_ms: s.justified_at_ms,
            });
            let label = ServiceLabel { service: s.service.clone() };
            self.metrics.demand_rps.get_or_create(&label).set(s.demand_rps);
            self.metrics.capacity_rps.get_or_create(&label).set(s.capacity_rps);
            self.metrics.shortfall_rps.get_or_create(&label).set(s.shortfall_rps);
            self.metrics.planned_instances.get_or_create(&label).set(i64::from(s.instances));
            let ready = self.fleet.ready_instances(&s.service);
            self.metrics.ready_instances.get_or_create(&label).set(ready as i64);
        }
        for change in &decided.changes {
            let action = format!("{:?}", change.action).to_lowercase();
            tracing::info!(node = change.node, action, reason = change.reason, "plan");
            self.metrics.changes.get_or_create(&ActionLabel { action }).inc();
        }
        self.metrics.cost_usd_per_hour.set(decided.cost_usd_per_hour);
    }

    async fn start_nodes(&mut self, decided: &Plan) -> Result<(), Error> {
        for node in decided.nodes.iter().filter(|n| n.action == NodeAction::Start) {
            let Some(flavor) = self.flavors.iter().find(|f| f.name == node.flavor) else { continue };
            let order = NodeOrder {
                node: node.node.clone(),
                flavor: flavor.name.clone(),
                cores: flavor.cores,
                memory_gib: flavor.memory_gib,
                gpus: flavor.gpus,
                boot_ms: flavor.boot_ms().unsigned_abs(),
            };
            if !self.may_act().await? {
                return Ok(());
            }
            if let Err(error) = self.provider.start(order).await {
                tracing::error!(%error, "node not started; the next period decides again");
                self.metrics.provider_errors.inc();
                self.entomb(&node.node).await?;
            }
        }
        Ok(())
    }

    /// Stops nodes that have nothing left to do.
    pub(super) async fn retire(&mut self) -> Result<(), Error> {
        for node in self.fleet.to_retire(self.context.clock.now_ms()) {
            if !self.may_act().await? {
                return Ok(());
            }
            if let Err(error) = self.provider.stop(&node).await {
                tracing::error!(%error, "node not stopped; trying again");
                self.metrics.provider_errors.inc();
                continue;
            }
            self.entomb(&node).await?;
        }
        Ok(())
    }

    /// Forgets a node once its key has its tombstone.
    async fn entomb(&mut self, node: &str) -> Result<(), Error> {
        let topic = self.context.bus.topics().name(ALLOCATION_CONTROL);
        let tombstone = OutRecord::tombstone(topic, format!("{NODE_KEY_PREFIX}{node}"));
        if self.commit(vec![tombstone]).await? {
            tracing::info!(node, "node retired");
            self.fleet.forget(node);
            self.counted_lost.remove(node);
        }
        Ok(())
    }
}

/// A node's share of a plan.
fn share(node: &NodePlan, decided: &Plan, stamp: Stamp) -> NodeAllocation {
    let causes: Vec<_> =
        decided.changes.iter().filter(|c| c.node == node.node).filter_map(|c| c.load.clone()).collect();
    let hosted = |service: &str| node.instances.iter().any(|i| i.service == service);
    let loads = decided.services.iter().filter(|s| hosted(&s.service)).map(|s| s.load.clone());
    let mut load = causes;
    for sample in loads {
        if !load.contains(&sample) {
            load.push(sample);
        }
    }
    NodeAllocation {
        schema: Default::default(),
        node: node.node.clone(),
        plan_id: stamp.plan_id(),
        epoch: stamp.epoch,
        sequence: stamp.sequence,
        created_at_ms: stamp.created_at_ms,
        instances: node.instances.clone(),
        drain: node.action == NodeAction::Stop,
        reason: node.reason.clone(),
        load,
    }
}
