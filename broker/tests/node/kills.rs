//! A broker that is killed at random moments, and clients that check what it promised.
//!
//! Twelve kills as a test; as many as wanted, with any seed, by hand:
//! `NODE_KILLS=200 NODE_SEED=7 cargo test --release -p broker --test node kills -- --nocapture`

use std::io::Write;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::child::Victim;
use crate::client::Client;
use crate::history::{self, History, Outcome};
use crate::workload::{Actor, LOG, PARTITIONS, Shared, TABLE, remains};

const KILLS: u64 = 12;
const SEED: u64 = 20_261_124;
/// A broker lives for so long before it is killed.
const LIFE_MS: std::ops::Range<u64> = 5..200;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn kills_lose_nothing_acknowledged_and_show_nothing_aborted() {
    let (kills, seed) = (setting("NODE_KILLS", KILLS), setting("NODE_SEED", SEED));
    eprintln!("{kills} kills, seed {seed} (NODE_KILLS, NODE_SEED)");
    let folder = tempfile::tempdir().unwrap();
    let mut victim = Victim::start(folder.path()).unwrap();
    let mut client = Client::connect(victim.address).unwrap();
    assert_eq!(client.create_topic(LOG, PARTITIONS, &[("retention.ms", "-1")]).unwrap(), 0);
    let compacted = [("cleanup.policy", "compact"), ("segment.bytes", "8192"), ("min.cleanable.dirty.ratio", "0.1")];
    assert_eq!(client.create_topic(TABLE, 1, &compacted).unwrap(), 0);

    let shared = Shared::new(victim.address);
    let mut rng = StdRng::seed_from_u64(seed);
    let history = thread::scope(|scope| {
        let mut actors = Vec::new();
        let mut play = |part: fn(Actor, u64) -> History| {
            let number = actors.len() as u64;
            let actor = Actor::new(&shared, seed.wrapping_mul(1000) + number);
            actors.push(scope.spawn(move || part(actor, number)));
        };
        for _ in 0..2 {
            play(Actor::write_plainly);
            play(Actor::write_idempotently);
            play(Actor::transact);
        }
        for _ in 0..2 {
            play(|actor, number| actor.commit(&format!("plain group {number}")));
        }
        for _ in 0..3 {
            play(Actor::serve_in_crew);
        }
        play(|actor, _| actor.follow());
        play(Actor::overwrite);
        for _ in 0..kills {
            thread::sleep(Duration::from_millis(rng.random_range(LIFE_MS)));
            victim.kill().unwrap();
            victim.restart().unwrap();
        }
        shared.stop.store(true, Ordering::SeqCst);
        let mut history = History::default();
        actors.into_iter().for_each(|actor| history.merge(actor.join().expect("a client panicked")));
        history
    });
    // The last word is what lies on the disk.
    victim.kill().unwrap();
    victim.restart().unwrap();
    let remains = remains(&mut Client::connect(victim.address).unwrap()).unwrap();

    let wrong = history::check(&history, &remains);
    report(&history, kills, wrong.len());
    assert!(
        wrong.is_empty(),
        "seed {seed}, {} complaints, the first: {:#?}",
        wrong.len(),
        &wrong[..wrong.len().min(10)]
    );
    let ended = |outcome| history.transactions.values().filter(|found| **found == outcome).count();
    assert!(ended(Outcome::Committed) > 0 && ended(Outcome::Aborted) > 0, "too little happened to check anything");
    assert!(history.appends.iter().any(|append| append.acknowledged.is_some()) && !history.seen.is_empty());
    let crew = &history.crew;
    assert!(crew.commits.iter().any(|commit| commit.acknowledged.is_some()) && !crew.readings.is_empty());
}

fn report(history: &History, kills: u64, wrong: usize) {
    let acknowledged = history.appends.iter().filter(|append| append.acknowledged.is_some()).count();
    let ended = |outcome| history.transactions.values().filter(|found| **found == outcome).count();
    let steps: usize = history.offsets.values().map(Vec::len).sum();
    let written: usize = history.table.values().map(Vec::len).sum();
    let _ = writeln!(
        std::io::stderr(),
        "{kills} kills: {acknowledged} of {} records acknowledged; transactions {} committed, {} aborted, {} unknown; \
         {steps} offset steps; of a crew {} generations joined, {} commits, {} readings; {} looks; {} records seen; {written} table writes; {wrong} wrong",
        history.appends.len(),
        ended(Outcome::Committed),
        ended(Outcome::Aborted),
        ended(Outcome::Unknown),
        history.crew.memberships.len(),
        history.crew.commits.len(),
        history.crew.readings.len(),
        history.looks.len(),
        history.seen.len(),
    );
}
