//! Models that are asked for at the node's door.

use super::Node;
use crate::direct::Command;
use crate::instance::InstanceKey;
use schemas::allocation::InstanceAllocation;
use schemas::status::InstanceState;

impl Node {
    pub(super) fn on_direct(&mut self, command: Command) {
        match command {
            Command::Load(instance, done) => {
                let outcome = self.load_beside(instance);
                // Told before the answer, so that nobody takes an older failure for this one.
                self.tell_door();
                // Whoever asked may have gone; the model stays.
                let _ = done.send(outcome);
            }
            Command::Unload(service, done) => {
                let outcome = self.let_go(&service);
                self.tell_door();
                let _ = done.send(outcome);
            }
        }
    }

    fn load_beside(&mut self, instance: InstanceAllocation) -> Result<(), String> {
        if self.is_ending() {
            return Err(format!("node {} stops", self.id));
        }
        let (service, key) = (instance.service.clone(), InstanceKey::of(&instance));
        if self.plan_of(&service).is_none() {
            self.loaded.insert(service, instance.clone());
            if self.instances.get(&key).is_some_and(|i| i.state() == InstanceState::Failed) {
                // Whoever asks does not want to wait for `executor.retry_load`.
                self.load(instance);
            }
        }
        self.follow_plan();
        Ok(())
    }

    fn let_go(&mut self, service: &str) -> Result<(), String> {
        if let Some(plan_id) = self.plan_of(service) {
            return Err(format!("plan {plan_id} gives node {} an instance of {service}: change the plan", self.id));
        }
        if self.loaded.remove(service).is_none() {
            return Err(format!("node {} holds no {service} that was loaded through a gateway", self.id));
        }
        self.follow_plan();
        Ok(())
    }

    /// The plan, if it has an instance of the service here.
    fn plan_of(&self, service: &str) -> Option<&str> {
        let plan = self.allocation.as_ref().filter(|plan| plan.instances.iter().any(|i| i.service == service));
        plan.map(|plan| plan.plan_id.as_str())
    }
}
