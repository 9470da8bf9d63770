//! All groups, the requests that wait for them, and one timer.
//!
//! The shell around [`Group`]: it hands requests in under a lock, delivers the answers, and sleeps
//! until the earliest deadline. Waiting requests are bounded by the connections (each has at most
//! one), groups by configuration. A client that goes away while it waits simply does not read its
//! answer; its session time-out deals with it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kafka_protocol::ResponseError;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::Token;
use super::group::{Description, Group, Limits};
use super::member::{Effect, Identity, Join, Reply, Request};

/// Groups and their waiting requests.
#[derive(Debug)]
pub(crate) struct Coordinator {
    limits: Limits,
    max_groups: usize,
    /// Zero of the groups' clock, which never goes backwards.
    epoch: Instant,
    inner: Mutex<Inner>,
    /// A deadline may have come nearer.
    rescheduled: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    groups: BTreeMap<String, Group>,
    waiting: HashMap<Token, oneshot::Sender<Reply>>,
    next_token: Token,
}

/// A line of `ListGroups`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) group: String,
    pub(crate) protocol_type: String,
    pub(crate) state: &'static str,
}

impl Coordinator {
    /// A coordinator without groups.
    pub(crate) fn new(limits: Limits, max_groups: usize) -> Self {
        Self { limits, max_groups, epoch: Instant::now(), inner: Mutex::default(), rescheduled: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> i64 {
        i64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    /// Joins a group; the answer comes when its rebalance completes.
    pub(crate) async fn join(&self, group: &str, join: Join) -> Reply {
        let member_id = join.who.member_id.clone();
        let refuse = |error| Reply::NotJoined { error, member_id: member_id.clone() };
        let answer = {
            let mut inner = self.lock();
            if !inner.groups.contains_key(group) {
                if !member_id.is_empty() {
                    return refuse(ResponseError::UnknownMemberId);
                }
                if inner.groups.len() >= self.max_groups && !inner.forget_oldest() {
                    tracing::warn!(group, limit = self.max_groups, "too many groups");
                    return refuse(ResponseError::GroupMaxSizeReached);
                }
                inner.groups.insert(group.to_owned(), Group::new(self.limits));
            }
            self.submit(&mut inner, group, Request::Join(join))
        };
        let gone = refuse(ResponseError::CoordinatorNotAvailable);
        answer.await.unwrap_or(gone)
    }

    /// Any other request of a member; the answer may have to wait.
    pub(crate) async fn ask(&self, group: &str, request: Request) -> Reply {
        let answer = {
            let mut inner = self.lock();
            if !inner.groups.contains_key(group) {
                return absent(&request);
            }
            self.submit(&mut inner, group, request)
        };
        answer.await.unwrap_or(Reply::Plain(Err(ResponseError::CoordinatorNotAvailable)))
    }

    /// Whether a member may commit offsets now; also decides for groups without members.
    pub(crate) fn may_commit(&self, group: &str, who: Identity, generation: i32) -> Result<(), ResponseError> {
        let mut inner = self.lock();
        let request = Request::Commit { who, generation };
        if !inner.groups.contains_key(group) {
            return if generation < 0 { Ok(()) } else { Err(ResponseError::IllegalGeneration) };
        }
        match self.submit(&mut inner, group, request).try_recv() {
            Ok(Reply::Plain(verdict)) => verdict,
            _ => Err(ResponseError::CoordinatorNotAvailable),
        }
    }

    fn submit(&self, inner: &mut Inner, group: &str, request: Request) -> oneshot::Receiver<Reply> {
        let (sender, receiver) = oneshot::channel();
        let token = inner.next_token;
        inner.next_token += 1;
        let now_ms = self.now_ms();
        let Some(state) = inner.groups.get_mut(group) else { return receiver };
        let (reply, effects) = state.apply(now_ms, token, request);
        if state.forget_ms().is_some_and(|at| at <= now_ms) {
            inner.groups.remove(group);
        }
        match reply {
            Some(reply) => {
                // The asker holds the other end until this returns.
                let _ = sender.send(reply);
            }
            None => {
                inner.waiting.insert(token, sender);
            }
        }
        inner.deliver(effects);
        self.rescheduled.notify_one();
        receiver
    }

    /// Lets time pass for all groups, until cancelled.
    pub(crate) async fn run_timer(&self) {
        loop {
            let next = self.tick();
            let rescheduled = self.rescheduled.notified();
            match next {
                Some(wait) => {
                    // Woken early or late does not matter: the tick asks the clock itself.
                    let _ = tokio::time::timeout(wait, rescheduled).await;
                }
                None => rescheduled.await,
            }
        }
    }

    /// Applies what is due; returns how long until something is due again.
    fn tick(&self) -> Option<Duration> {
        let mut inner = self.lock();
        let now_ms = self.now_ms();
        let Inner { groups, .. } = &mut *inner;
        let due = groups.values_mut().filter(|g| g.deadline().is_some_and(|at| at <= now_ms));
        let effects: Vec<_> = due.flat_map(|group| group.apply(now_ms, Token::MAX, Request::Tick).1).collect();
        groups.retain(|_, group| group.forget_ms().is_none_or(|at| at > now_ms));
        inner.deliver(effects);
        let next = inner.groups.values().flat_map(|group| [group.deadline(), group.forget_ms()]).flatten().min()?;
        Some(Duration::from_millis(u64::try_from(next - now_ms).unwrap_or(0).max(1)))
    }

    /// Whether the group has members, or ids given out to some.
    pub(crate) fn is_live(&self, group: &str) -> bool {
        self.lock().groups.get(group).is_some_and(|group| !group.is_unused())
    }

    /// Forgets a group that everybody has left; says whether there was one.
    pub(crate) fn forget(&self, group: &str) -> bool {
        let mut inner = self.lock();
        let is_deserted = inner.groups.get(group).is_some_and(Group::is_unused);
        is_deserted && inner.groups.remove(group).is_some()
    }

    /// Whether a member of the group subscribes to something, so that its offsets are in use.
    pub(crate) fn has_members(&self, group: &str) -> bool {
        self.lock().groups.get(group).is_some_and(|group| !group.is_empty())
    }

    /// Groups that have members, or had some lately.
    pub(crate) fn list(&self) -> Vec<Listed> {
        let inner = self.lock();
        let listed = inner.groups.iter().map(|(name, group)| Listed {
            group: name.clone(),
            protocol_type: group.protocol_type().to_owned(),
            state: group.state_name(),
        });
        listed.collect()
    }

    /// All about a group that has members, or had some lately.
    pub(crate) fn describe(&self, group: &str) -> Option<Description> {
        self.lock().groups.get(group).map(Group::describe)
    }
}

impl Inner {
    /// Makes room: forgets the group that was left first; says whether there was one.
    fn forget_oldest(&mut self) -> bool {
        let deserted = self.groups.iter().filter_map(|(name, group)| Some((group.forget_ms()?, name)));
        let Some(oldest) = deserted.min().map(|(_, name)| name.clone()) else { return false };
        self.groups.remove(&oldest).is_some()
    }

    fn deliver(&mut self, effects: Vec<Effect>) {
        for Effect { token, reply } in effects {
            if let Some(sender) = self.waiting.remove(&token) {
                // The asker may have hung up; nothing to do about it.
                let _ = sender.send(reply);
            }
        }
    }
}

/// What is answered about a group that has no members.
fn absent(request: &Request) -> Reply {
    let unknown = Err(ResponseError::UnknownMemberId);
    match request {
        Request::Leave(leaving) => Reply::Left(leaving.iter().map(|_| unknown).collect()),
        _ => Reply::Plain(unknown),
    }
}
