#![allow(clippy::unwrap_used, reason = "tests")]
//! Whatever bytes arrive, over real sockets: that connection is answered or closed, at once, and
//! everybody else is served.
//!
//! Longer, with another seed: `BROKER_FUZZ_CASES=100000 BROKER_FUZZ_SEED=7 cargo test --release -p
//! broker --lib server::tests -- --nocapture`

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use kafka_protocol::messages::ApiKey;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use crate::protocol::api::APIS;
use crate::protocol::frame::tests::{Dice, body, frame_of};
use crate::{Broker, Config};

const CASES: u64 = 1500;
const SEED: u64 = 20_261_124;
/// An answer, or the end of the connection, takes no longer than this.
const PATIENCE: Duration = Duration::from_secs(10);

/// One thing that goes wrong with a frame on its way.
#[derive(Debug, Clone)]
enum Damage {
    Flip {
        at: usize,
        mask: u8,
    },
    Cut {
        at: usize,
    },
    Insert {
        at: usize,
        bytes: Vec<u8>,
    },
    /// A number of four bytes becomes an extreme one: lengths and counts, mostly.
    Extreme {
        at: usize,
        value: i32,
    },
    Swap {
        from: usize,
        to: usize,
    },
}

/// A sound frame of some request and version, and what happens to it.
#[derive(Debug, Clone)]
struct Attack {
    api: usize,
    version: i16,
    dice: Vec<u8>,
    damages: Vec<Damage>,
    /// What the length in front of the frame is off by.
    length_off: i32,
}

fn attacks() -> impl Strategy<Value = Attack> {
    let at = || 0usize..200;
    let damage = prop_oneof![
        4 => (at(), 1u8..).prop_map(|(at, mask)| Damage::Flip { at, mask }),
        1 => at().prop_map(|at| Damage::Cut { at }),
        2 => (at(), proptest::collection::vec(any::<u8>(), 1..20)).prop_map(|(at, bytes)| Damage::Insert { at, bytes }),
        3 => (at(), prop_oneof![Just(i32::MAX), Just(-1), Just(i32::MIN), Just(0), any::<i32>()])
            .prop_map(|(at, value)| Damage::Extreme { at, value }),
        1 => (at(), at()).prop_map(|(from, to)| Damage::Swap { from, to }),
    ];
    let off = prop_oneof![8 => Just(0), 1 => -20..20, 1 => any::<i32>()];
    (
        0..APIS.len(),
        0i16..20,
        proptest::collection::vec(any::<u8>(), 0..120),
        proptest::collection::vec(damage, 0..4),
        off,
    )
        .prop_map(|(api, version, dice, damages, length_off)| Attack { api, version, dice, damages, length_off })
}

impl Attack {
    /// The bytes that go over the wire.
    fn bytes(&self) -> Vec<u8> {
        let api = &APIS[self.api];
        let version = api.min_served + self.version % (api.max - api.min_served + 1);
        let body = body(api.body, version, api.is_flexible(version), &mut Dice(&self.dice));
        let mut frame = frame_of(api, version, &body).to_vec();
        for damage in &self.damages {
            match damage {
                Damage::Flip { at, mask } => frame.iter_mut().skip(*at).take(1).for_each(|byte| *byte ^= mask),
                Damage::Cut { at } => frame.truncate(*at),
                Damage::Insert { at, bytes } => {
                    let at = (*at).min(frame.len());
                    frame.splice(at..at, bytes.iter().copied());
                }
                Damage::Extreme { at, value } => {
                    frame.iter_mut().skip(*at).zip(value.to_be_bytes()).for_each(|(byte, new)| *byte = new);
                }
                Damage::Swap { from, to } if *from < frame.len() && *to < frame.len() => frame.swap(*from, *to),
                Damage::Swap { .. } => {}
            }
        }
        let length = i32::try_from(frame.len()).unwrap().wrapping_add(self.length_off);
        [&length.to_be_bytes()[..], &frame].concat()
    }

    /// Requests that may rightly wait, when what follows them hides that the peer has hung up.
    fn may_wait(bytes: &[u8]) -> bool {
        let waiting = [ApiKey::Fetch, ApiKey::JoinGroup, ApiKey::SyncGroup].map(|key| (key as i16).to_be_bytes());
        bytes.get(4..6).is_some_and(|key| waiting.iter().any(|known| known == key))
    }

    fn run(&self, broker: &Broker) -> Result<(), TestCaseError> {
        let bytes = self.bytes();
        let mut stream = TcpStream::connect(broker.addr()).unwrap();
        stream
            .set_read_timeout(Some(if Self::may_wait(&bytes) { Duration::from_millis(20) } else { PATIENCE }))
            .unwrap();
        // The broker may have hung up before the last byte.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) if Self::may_wait(&bytes) && error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(TestCaseError::fail(format!("neither answered nor closed: {error}"))),
        }
        // What comes back is whole frames and nothing else.
        let mut rest = answer.as_slice();
        while let Some((length, behind)) = rest.split_first_chunk::<4>() {
            let frame = behind.get(u32::from_be_bytes(*length) as usize..);
            rest = frame.ok_or_else(|| TestCaseError::fail("an answer is cut off"))?;
        }
        prop_assert!(rest.is_empty());
        Ok(())
    }
}

/// Metadata version 1 about no topics, on a connection of long ago.
fn is_served(stream: &mut TcpStream) -> bool {
    let request = [0, 0, 0, 14, 0, 3, 0, 1, 0, 0, 0, 9, 0xff, 0xff, 0, 0, 0, 0];
    stream.write_all(&request).unwrap();
    let mut head = [0; 8];
    stream.read_exact(&mut head).unwrap();
    let length = u32::from_be_bytes(*head.first_chunk().unwrap()) as usize;
    stream.read_exact(&mut vec![0; length - 4]).unwrap();
    head[4..] == [0, 0, 0, 9]
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn nonsense_ends_at_worst_its_own_connection() {
    let (cases, seed) = (setting("BROKER_FUZZ_CASES", CASES), setting("BROKER_FUZZ_SEED", SEED));
    eprintln!("{cases} cases, seed {seed} (BROKER_FUZZ_CASES, BROKER_FUZZ_SEED)");
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::new(folder.path());
    config.max_request_bytes = 1 << 20;
    config.max_partitions = 200;
    config.group_max_session_timeout_ms = 2_000;
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let broker = runtime.block_on(Broker::start(config)).unwrap();
    let bystander = TcpStream::connect(broker.addr()).unwrap();
    bystander.set_read_timeout(Some(PATIENCE)).unwrap();

    let mut seed_bytes = [0; 32];
    seed_bytes[..8].copy_from_slice(&seed.to_be_bytes());
    let settings = ProptestConfig { cases: cases as u32, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new_with_rng(settings, TestRng::from_seed(RngAlgorithm::ChaCha, &seed_bytes));
    let bystander = std::cell::RefCell::new(bystander);
    let outcome = runner.run(&attacks(), |attack| {
        attack.run(&broker)?;
        prop_assert!(is_served(&mut bystander.borrow_mut()));
        Ok(())
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(why, attack)) => panic!("seed {seed}: {why}: {attack:?} = {:02x?}", attack.bytes()),
        Err(error) => panic!("seed {seed}: {error}"),
    }
    runtime.block_on(broker.shutdown());
}
