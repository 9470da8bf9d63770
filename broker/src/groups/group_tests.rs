#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::groups::member::{Join, Joined};

const LIMITS: Limits =
    Limits { min_session_timeout_ms: 100, max_session_timeout_ms: 60_000, initial_delay_ms: 0, max_members: 8 };
const SESSION_MS: i64 = 1000;
const REBALANCE_MS: i64 = 3000;

/// A group and what it has answered so far.
struct Bench {
    group: Group,
    now: i64,
    next: Token,
    answers: BTreeMap<Token, Reply>,
}

impl Bench {
    fn new() -> Self {
        Self::with(LIMITS)
    }

    fn with(limits: Limits) -> Self {
        Self { group: Group::new(limits), now: 0, next: 0, answers: BTreeMap::new() }
    }

    fn ask(&mut self, request: Request) -> Token {
        let token = self.next;
        self.next += 1;
        self.collect(token, request);
        token
    }

    fn collect(&mut self, token: Token, request: Request) {
        let (reply, effects) = self.group.apply(self.now, token, request);
        let own = reply.map(|reply| Effect { token, reply });
        for effect in own.into_iter().chain(effects) {
            let earlier = self.answers.insert(effect.token, effect.reply);
            assert!(earlier.is_none(), "request {} was answered twice", effect.token);
        }
    }

    /// Lets time pass, ticking at every deadline on the way.
    fn wait(&mut self, ms: i64) {
        let until = self.now + ms;
        while let Some(next) = self.group.deadline().filter(|next| *next <= until) {
            self.now = self.now.max(next);
            self.collect(Token::MAX, Request::Tick);
            self.answers.remove(&Token::MAX);
        }
        self.now = until;
    }

    fn join(&mut self, id: &str) -> Token {
        self.ask(Request::Join(join(id)))
    }

    fn sync(&mut self, id: &str, assignments: &[(&str, &str)]) -> Token {
        let generation = self.group.generation;
        self.ask(sync(id, generation, assignments))
    }

    fn heartbeat(&mut self, id: &str) -> Result<(), ResponseError> {
        let generation = self.group.generation;
        let who = member(id);
        let token = self.ask(Request::Heartbeat { who, generation });
        self.plain(token)
    }

    fn joined(&self, token: Token) -> &Joined {
        match self.answers.get(&token) {
            Some(Reply::Joined(joined)) => joined,
            other => panic!("{other:?}"),
        }
    }

    fn not_joined(&self, token: Token) -> ResponseError {
        match self.answers.get(&token) {
            Some(Reply::NotJoined { error, .. }) => *error,
            other => panic!("{other:?}"),
        }
    }

    fn assignment(&self, token: Token) -> String {
        match self.answers.get(&token) {
            Some(Reply::Synced(synced)) => String::from_utf8(synced.assignment.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn plain(&self, token: Token) -> Result<(), ResponseError> {
        match self.answers.get(&token) {
            Some(Reply::Plain(verdict)) => *verdict,
            other => panic!("{other:?}"),
        }
    }

    /// Two members `a` (the leader) and `b`, stable.
    fn pair() -> Self {
        let mut bench = Self::new();
        bench.arrive("a");
        let second = bench.arrive("b");
        // `a` has synced nothing yet and learns of the new member by its next join.
        let first = bench.join("a");
        assert_eq!(bench.joined(first).members.len(), 2);
        assert_eq!(bench.joined(second).leader, "a");
        let b = bench.sync("b", &[]);
        assert!(!bench.answers.contains_key(&b), "waits for the leader");
        let a = bench.sync("a", &[("a", "1,2"), ("b", "3")]);
        assert_eq!((bench.assignment(a), bench.assignment(b)), ("1,2".into(), "3".into()));
        assert_eq!(bench.group.state_name(), "Stable");
        bench
    }
}

/// A name in these tests is a member id, or `id@instance`.
fn member(name: &str) -> Identity {
    match name.split_once('@') {
        Some((id, instance)) => Identity { member_id: id.to_owned(), instance_id: Some(instance.to_owned()) },
        None => Identity { member_id: name.to_owned(), instance_id: None },
    }
}

/// A join of an older client: a new member gets the id it asks for, and is in at once.
fn join(name: &str) -> Join {
    let who = member(name);
    Join {
        fresh_id: who.member_id.clone(),
        who,
        can_rejoin_with_id: false,
        can_skip_assignment: true,
        client_id: "client".into(),
        client_host: "/127.0.0.1".into(),
        session_timeout_ms: SESSION_MS,
        rebalance_timeout_ms: REBALANCE_MS,
        protocol_type: "consumer".into(),
        protocols: vec![("range".into(), Bytes::from_static(b"topics"))],
    }
}

fn sync(name: &str, generation: i32, assignments: &[(&str, &str)]) -> Request {
    let given = assignments.iter().map(|(id, part)| ((*id).to_owned(), Bytes::copy_from_slice(part.as_bytes())));
    Request::Sync(Sync {
        who: member(name),
        generation,
        protocol_type: Some("consumer".into()),
        protocol: None,
        assignments: given.collect(),
    })
}

impl Bench {
    /// A first join: the id is the coordinator's choice.
    fn arrive(&mut self, name: &str) -> Token {
        let mut join = join(name);
        join.who.member_id.clear();
        self.ask(Request::Join(join))
    }
}

#[test]
fn member_id_is_required_and_then_known() {
    let mut bench = Bench::new();
    let mut first = join("a");
    first.who.member_id.clear();
    first.can_rejoin_with_id = true;
    let token = bench.ask(Request::Join(first.clone()));
    assert_eq!(
        bench.answers.get(&token),
        Some(&Reply::NotJoined { error: ResponseError::MemberIdRequired, member_id: "a".into() })
    );
    assert!(bench.group.is_empty() && !bench.group.is_unused());
    first.who.member_id = "a".into();
    let token = bench.ask(Request::Join(first));
    assert_eq!(bench.joined(token).leader, "a");
    // An id that was given out and never used is forgotten.
    let mut ghost = join("ghost");
    ghost.who.member_id.clear();
    ghost.can_rejoin_with_id = true;
    bench.ask(Request::Join(ghost));
    bench.wait(SESSION_MS);
    let late = bench.join("ghost");
    assert_eq!(bench.not_joined(late), ResponseError::UnknownMemberId);
}

#[test]
fn joins_and_syncs_of_a_pair() {
    let mut bench = Bench::pair();
    assert_eq!(bench.heartbeat("a"), Ok(()));
    // A member that syncs again gets the same.
    let again = bench.sync("b", &[]);
    assert_eq!(bench.assignment(again), "3");
    let view = bench.group.describe();
    assert_eq!((view.state, view.protocol.as_str(), view.members.len()), ("Stable", "range", 2));
    assert_eq!(view.members[1].assignment, "3");
}

#[test]
fn leaving_hands_over() {
    let mut bench = Bench::pair();
    let token = bench.ask(Request::Leave(vec![member("a"), member("nobody")]));
    let expected = Reply::Left(vec![Ok(()), Err(ResponseError::UnknownMemberId)]);
    assert_eq!(bench.answers.get(&token), Some(&expected));
    assert_eq!(bench.heartbeat("b"), Err(ResponseError::RebalanceInProgress));
    let token = bench.join("b");
    assert_eq!(bench.joined(token).leader, "b");
    bench.sync("b", &[("b", "all")]);
    bench.ask(Request::Leave(vec![member("b")]));
    assert_eq!(bench.group.state_name(), "Empty");
    assert!(bench.group.is_unused() && bench.group.deadline().is_none());
    // It is remembered for a while from when it was left, and while somebody is in it.
    let forget_ms = bench.now + LINGER_MS;
    assert_eq!(bench.group.forget_ms(), Some(forget_ms));
    bench.wait(1000);
    assert_eq!(bench.heartbeat("b"), Err(ResponseError::UnknownMemberId));
    assert_eq!(bench.group.forget_ms(), Some(forget_ms));
    let mut newcomer = join("c");
    newcomer.who.member_id.clear();
    bench.ask(Request::Join(newcomer));
    assert_eq!(bench.group.forget_ms(), None);
}

#[test]
fn silent_members_are_evicted_and_others_are_not() {
    let mut bench = Bench::pair();
    for _ in 0..3 {
        bench.wait(SESSION_MS / 2);
        assert_eq!(
            bench.heartbeat("a"),
            if bench.now < SESSION_MS { Ok(()) } else { Err(ResponseError::RebalanceInProgress) }
        );
    }
    let token = bench.join("a");
    assert_eq!(bench.joined(token).members.len(), 1, "b is gone");
    assert_eq!(bench.heartbeat("b"), Err(ResponseError::UnknownMemberId));
}

#[test]
fn rebalance_goes_on_without_those_who_do_not_come() {
    let mut bench = Bench::pair();
    let third = bench.arrive("c");
    let first = bench.join("a");
    for _ in 0..5 {
        bench.wait(REBALANCE_MS / 5 - 1);
        // `b` is alive but never joins again.
        let _ = bench.heartbeat("b");
        assert!(!bench.answers.contains_key(&third));
    }
    bench.wait(REBALANCE_MS);
    assert_eq!(bench.joined(first).members.len(), 2);
    assert_eq!(bench.joined(third).generation, bench.joined(first).generation);
    assert_eq!(bench.heartbeat("b"), Err(ResponseError::UnknownMemberId));
}

#[test]
fn leader_that_never_assigns_is_dropped() {
    let mut bench = Bench::new();
    bench.arrive("a");
    let b = bench.arrive("b");
    let a = bench.join("a");
    assert_eq!((bench.joined(a).leader.as_str(), bench.joined(b).leader.as_str()), ("a", "a"));
    let waiting = bench.sync("b", &[]);
    for _ in 0..7 {
        bench.wait(REBALANCE_MS / 7);
        let _ = bench.heartbeat("a");
    }
    bench.wait(10);
    assert_eq!(bench.plain(waiting), Err(ResponseError::RebalanceInProgress));
    let again = bench.join("b");
    assert_eq!(bench.joined(again).leader, "b");
}

#[test]
fn wrong_generations_and_states_are_refused() {
    let mut bench = Bench::pair();
    let generation = bench.group.generation;
    let ask = |bench: &mut Bench, request| {
        let token = bench.ask(request);
        bench.plain(token)
    };
    let illegal = Err(ResponseError::IllegalGeneration);
    assert_eq!(ask(&mut bench, sync("a", generation - 1, &[])), illegal);
    let old = Request::Heartbeat { who: member("a"), generation: generation + 1 };
    assert_eq!(ask(&mut bench, old), illegal);
    let commit = |id: &str, generation| Request::Commit { who: member(id), generation };
    assert_eq!(ask(&mut bench, commit("a", generation)), Ok(()));
    assert_eq!(ask(&mut bench, commit("a", generation - 1)), illegal);
    assert_eq!(ask(&mut bench, commit("x", generation)), Err(ResponseError::UnknownMemberId));
    assert_eq!(ask(&mut bench, commit("", -1)), Err(ResponseError::UnknownMemberId));
    // While the group prepares, members may still commit what they have done.
    bench.arrive("c");
    assert_eq!(ask(&mut bench, commit("a", generation)), Ok(()));
    assert_eq!(ask(&mut bench, sync("a", generation, &[])), Err(ResponseError::RebalanceInProgress));
    bench.join("a");
    bench.join("b");
    // In the new generation only after the assignment.
    let generation = bench.group.generation;
    let rebalancing = Err(ResponseError::RebalanceInProgress);
    assert_eq!(ask(&mut bench, commit("a", generation)), rebalancing);
}

#[test]
fn assignors_must_be_common() {
    let mut bench = Bench::new();
    let with = |id: &str, names: &[&str]| {
        let mut join = join(id);
        join.who.member_id.clear();
        join.protocols = names.iter().map(|n| ((*n).to_owned(), Bytes::new())).collect();
        join
    };
    bench.ask(Request::Join(with("a", &["sticky", "range"])));
    let stranger = bench.ask(Request::Join(with("b", &["round-robin"])));
    assert_eq!(bench.not_joined(stranger), ResponseError::InconsistentGroupProtocol);
    let mut connect = with("c", &["range"]);
    connect.protocol_type = "connect".into();
    let connect = bench.ask(Request::Join(connect));
    assert_eq!(bench.not_joined(connect), ResponseError::InconsistentGroupProtocol);
    let common = bench.ask(Request::Join(with("d", &["range", "other"])));
    let mut again = with("a", &["sticky", "range"]);
    again.who.member_id = "a".into();
    bench.ask(Request::Join(again));
    assert_eq!(bench.joined(common).protocol.as_deref(), Some("range"));
    let empty = bench.ask(Request::Join(with("e", &[])));
    assert_eq!(bench.not_joined(empty), ResponseError::InconsistentGroupProtocol);
}

#[test]
fn limits_are_kept() {
    let mut bench = Bench::with(Limits { max_members: 1, ..LIMITS });
    let mut hasty = join("a");
    hasty.who.member_id.clear();
    hasty.session_timeout_ms = 99;
    let hasty = bench.ask(Request::Join(hasty));
    assert_eq!(bench.not_joined(hasty), ResponseError::InvalidSessionTimeout);
    bench.arrive("a");
    let second = bench.arrive("b");
    assert_eq!(bench.not_joined(second), ResponseError::GroupMaxSizeReached);
    let again = bench.join("a");
    assert!(bench.answers.contains_key(&again));
}

#[test]
fn first_rebalance_can_wait_for_more_members() {
    let mut bench = Bench::with(Limits { initial_delay_ms: 500, ..LIMITS });
    let a = bench.arrive("a");
    bench.wait(300);
    let b = bench.arrive("b");
    bench.wait(300);
    assert!(!bench.answers.contains_key(&a), "the second one extends the wait");
    bench.wait(300);
    assert_eq!(bench.joined(a).members.len(), 2);
    assert_eq!(bench.joined(b).generation, 1);
}

#[test]
fn static_member_restarts_without_a_rebalance() {
    let mut bench = Bench::new();
    bench.arrive("a@one");
    let b = bench.arrive("b@two");
    bench.join("a@one");
    let generation = bench.joined(b).generation;
    bench.sync("a@one", &[("a", "1"), ("b", "2")]);
    bench.sync("b@two", &[]);
    // A restart: the same name, no id yet.
    let mut back = join("b2@two");
    back.who.member_id.clear();
    let token = bench.ask(Request::Join(back));
    let joined = bench.joined(token);
    assert_eq!((joined.generation, joined.member_id.as_str()), (generation, "b2"));
    assert_eq!(bench.heartbeat("a@one"), Ok(()), "the other one notices nothing");
    let synced = bench.sync("b2@two", &[]);
    assert_eq!(bench.assignment(synced), "2");
    assert_eq!(bench.heartbeat("b@two"), Err(ResponseError::FencedInstanceId));
    // The leader restarts: it keeps the assignment too, and is told to skip a new one.
    let mut leader = join("a2@one");
    leader.who.member_id.clear();
    let token = bench.ask(Request::Join(leader));
    let joined = bench.joined(token);
    assert!(joined.skip_assignment && joined.leader == "a2" && joined.members.len() == 2);
    // An operator removes one by name.
    let gone = Identity { member_id: String::new(), instance_id: Some("two".into()) };
    bench.ask(Request::Leave(vec![gone]));
    assert_eq!(bench.heartbeat("b2@two"), Err(ResponseError::UnknownMemberId));
}

#[test]
fn static_members_outlive_a_missed_rebalance_but_not_their_session() {
    let mut bench = Bench::new();
    let mut lasting = join("a@one");
    lasting.who.member_id.clear();
    lasting.session_timeout_ms = 10 * REBALANCE_MS;
    bench.ask(Request::Join(lasting));
    bench.sync("a@one", &[("a", "all")]);
    let b = bench.arrive("b");
    bench.wait(REBALANCE_MS);
    let joined = bench.joined(b);
    assert_eq!((joined.members.len(), joined.leader.as_str()), (2, "b"), "a is absent, not gone");
    bench.sync("b", &[("b", "some"), ("a", "some")]);
    for _ in 0..100 {
        bench.wait(SESSION_MS / 2);
        let _ = bench.heartbeat("b");
        if bench.group.state_name() == "PreparingRebalance" {
            let token = bench.join("b");
            if let Some(Reply::Joined(joined)) = bench.answers.get(&token).cloned() {
                if joined.members.len() == 1 {
                    return;
                }
                bench.sync("b", &[("b", "all")]);
            }
        }
    }
    panic!("the absent static member was never evicted");
}

#[derive(Debug, Clone)]
enum Step {
    Join(usize),
    Sync(usize),
    Heartbeat(usize),
    Leave(usize),
    Restart(usize),
    Wait(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = || 0usize..5;
    let step = prop_oneof![
        4 => who().prop_map(Step::Join),
        4 => who().prop_map(Step::Sync),
        2 => who().prop_map(Step::Heartbeat),
        1 => who().prop_map(Step::Leave),
        1 => who().prop_map(Step::Restart),
        2 => (1i64..2500).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 1..120)
}

/// A client of the tests: dynamic, or static with a name that survives restarts.
#[derive(Debug, Clone, Default)]
struct Actor {
    id: String,
    instance: Option<String>,
    generation: i32,
    is_leader: bool,
    members: Vec<String>,
    join: Option<Token>,
    sync: Option<Token>,
}

proptest! {
    /// Clients that join, sync, leave, restart and fall silent in any order: no request is answered
    /// twice or forgotten, all members of a generation agree on it, and exactly what the leader
    /// assigned arrives.
    #[test]
    fn generations_are_consistent(steps in steps()) {
        let mut bench = Bench::new();
        let mut fresh = 0;
        let mut actors: Vec<Actor> = (0..5)
            .map(|i| Actor {
                instance: (i >= 3).then(|| format!("static{i}")),
                ..Actor::default()
            })
            .collect();
        let mut protocols: BTreeMap<i32, (String, BTreeSet<String>)> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Join(i) | Step::Restart(i) => {
                    if matches!(step, Step::Restart(_)) {
                        actors[i].id.clear();
                    } else if actors[i].join.is_some() || actors[i].sync.is_some() {
                        continue;
                    }
                    fresh += 1;
                    let mut request = join(&format!("m{fresh}"));
                    request.who = Identity {
                        member_id: actors[i].id.clone(),
                        instance_id: actors[i].instance.clone(),
                    };
                    actors[i].sync = None;
                    actors[i].join = Some(bench.ask(Request::Join(request)));
                }
                Step::Sync(i) => {
                    let actor = &actors[i];
                    if actor.id.is_empty() || actor.join.is_some() || actor.sync.is_some() {
                        continue;
                    }
                    let given = actor.members.iter().filter(|_| actor.is_leader);
                    let assignments: Vec<_> = given
                        .map(|id| {
                            let part = format!("{}/{id}", actor.generation);
                            (id.clone(), Bytes::from(part))
                        })
                        .collect();
                    let request = Request::Sync(Sync {
                        who: Identity {
                            member_id: actor.id.clone(), instance_id: actor.instance.clone(),
                        },
                        generation: actor.generation,
                        protocol_type: None,
                        protocol: None,
                        assignments,
                    });
                    actors[i].sync = Some(bench.ask(request));
                }
                Step::Heartbeat(i) => {
                    let who = Identity {
                        member_id: actors[i].id.clone(), instance_id: actors[i].instance.clone(),
                    };
                    let generation = actors[i].generation;
                    bench.ask(Request::Heartbeat { who, generation });
                }
                Step::Leave(i) => {
                    let who = Identity {
                        member_id: std::mem::take(&mut actors[i].id),
                        instance_id: actors[i].instance.clone(),
                    };
                    if !who.member_id.is_empty() {
                        bench.ask(Request::Leave(vec![who]));
                    }
                }
                Step::Wait(ms) => bench.wait(ms),
            }
            for actor in &mut actors {
                settle(&bench, actor, &mut protocols)?;
            }
            check(&bench.group)?;
        }
        // In the end everybody falls silent: all is answered, nobody is left.
        bench.wait(NEW_MEMBER_TIMEOUT_MS + 20 * REBALANCE_MS);
        prop_assert!(bench.group.is_unused(), "{:?}", bench.group);
        let latest = bench.now + LINGER_MS;
        prop_assert!(bench.group.forget_ms().is_some_and(|at| at <= latest));
        for actor in &actors {
            let open = actor.join.iter().chain(&actor.sync);
            prop_assert!(open.clone().all(|token| bench.answers.contains_key(token)));
        }
    }
}

/// Takes what an actor was answered.
fn settle(
    bench: &Bench,
    actor: &mut Actor,
    generations: &mut BTreeMap<i32, (String, BTreeSet<String>)>,
) -> Result<(), TestCaseError> {
    if let Some(reply) = actor.join.and_then(|token| bench.answers.get(&token)) {
        actor.join = None;
        match reply {
            Reply::Joined(joined) => {
                actor.id.clone_from(&joined.member_id);
                actor.generation = joined.generation;
                actor.is_leader = joined.leader == joined.member_id && !joined.skip_assignment;
                actor.members = joined.members.iter().map(|(id, ..)| id.clone()).collect();
                let protocol = joined.protocol.clone().unwrap_or_default();
                let seen = generations.entry(joined.generation).or_default();
                prop_assert!(seen.0.is_empty() || seen.0 == protocol);
                seen.0 = protocol;
                seen.1.insert(joined.member_id.clone());
                if actor.is_leader {
                    prop_assert!(actor.members.contains(&actor.id));
                }
            }
            Reply::NotJoined { .. } => {
                actor.id.clear();
                actor.is_leader = false;
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }
    if let Some(reply) = actor.sync.and_then(|token| bench.answers.get(&token)) {
        actor.sync = None;
        if let Reply::Synced(synced) = reply {
            let part = String::from_utf8(synced.assignment.to_vec()).unwrap();
            // What arrives was made for this generation; a restarted static member gets what was
            // made for its former self, and a leader may have assigned nothing.
            let own = format!("{}/{}", actor.generation, actor.id);
            let inherited = actor.instance.is_some() && part.starts_with(&format!("{}/", actor.generation));
            prop_assert!(part.is_empty() || part == own || inherited, "{} for {}", part, own);
        }
    }
    Ok(())
}

/// What holds at any time.
fn check(group: &Group) -> Result<(), TestCaseError> {
    for (name, id) in &group.instances {
        let member = group.members.get(id);
        prop_assert_eq!(member.and_then(|m| m.instance_id.as_ref()), Some(name));
    }
    let statics = group.members.values().filter(|m| m.instance_id.is_some()).count();
    prop_assert_eq!(statics, group.instances.len());
    match group.phase {
        Phase::Empty => prop_assert!(group.members.is_empty()),
        Phase::Preparing { .. } => {
            prop_assert!(!group.members.is_empty());
            prop_assert!(group.members.values().all(|m| m.syncing.is_none()));
        }
        Phase::Completing | Phase::Stable => {
            prop_assert!(group.protocol.is_some());
            prop_assert!(group.members.values().all(|m| m.joining.is_none()));
            if let Some(leader) = &group.leader {
                prop_assert!(group.members.contains_key(leader));
            }
        }
    }
    if !group.members.is_empty() {
        prop_assert!(group.deadline().is_some(), "nothing would ever happen again");
    }
    Ok(())
}
