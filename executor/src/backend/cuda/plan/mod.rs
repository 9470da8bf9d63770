//! A model of one batch size as a flat list of kernel calls over numbered buffers. Pure: no device is needed to make a
//! plan, to print it, or to say what it must cost at least.

mod call;

pub use call::{Activation, Arg, Bias, Call, Floor, Launch, Pooling, Reduction, SMALL_ROWS, Window};

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

/// Buffers begin at multiples of this many elements (256 bytes): vector loads and whole memory lines.
const ALIGN: usize = 64;

/// Where a tensor lives. All tensors are contiguous and row-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Slot {
    /// A buffer of the instance.
    Buffer(usize),
    /// A constant of the model, shared between instances.
    Constant(usize),
}

/// A place in a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    /// The tensor.
    pub slot: Slot,
    /// Elements from its beginning.
    pub offset: usize,
}

impl From<Slot> for At {
    fn from(slot: Slot) -> Self {
        At { slot, offset: 0 }
    }
}

impl Launch {
    /// Slots this launch touches.
    fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        self.args.iter().filter_map(|a| if let Arg::At(at) = a { Some(at.slot) } else { None })
    }
}

/// A step with the node of the model it comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Node.
    pub node: String,
    /// Call.
    pub call: Call,
}

/// How buffers are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    /// Buffers whose lives do not overlap share memory.
    #[default]
    Shared,
    /// Every buffer has memory of its own: for tests, where a read of stale memory must not go unseen.
    Separate,
}

/// A model of one batch size.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Rows.
    pub batch: usize,
    /// Operators of the model, as tract calls them.
    pub operators: BTreeSet<String>,
    /// Elements of each buffer.
    pub buffers: Vec<usize>,
    /// Calls in order.
    pub steps: Vec<Step>,
    /// Inputs in the order of the signature.
    pub inputs: Vec<Slot>,
    /// Outputs in the order of the signature.
    pub outputs: Vec<Slot>,
    /// First element of each buffer in the arena.
    pub offsets: Vec<usize>,
    /// Elements of the arena.
    pub arena: usize,
}

impl Plan {
    /// Drops calls whose results nobody reads.
    pub fn drop_unread(&mut self) {
        let mut read: std::collections::HashSet<Slot> = self.outputs.iter().copied().collect();
        let mut kept = Vec::with_capacity(self.steps.len());
        for step in self.steps.drain(..).rev() {
            let written = step.call.written();
            if written.iter().any(|slot| read.contains(slot)) {
                read.extend(step.call.launch().slots());
                kept.push(step);
            }
        }
        kept.reverse();
        self.steps = kept;
    }

    /// Lays out the buffers.
    pub fn lay_out(&mut self, layout: Layout) {
        let lives = lives(self);
        let shared = layout == Layout::Shared;
        let placed = place(&self.buffers, &lives, shared);
        self.arena = self.buffers.iter().zip(&placed).map(|(n, at)| at + n).max().unwrap_or(0).max(1);
        self.offsets = placed;
    }

    /// Device memory of an instance, bytes.
    pub fn arena_bytes(&self) -> u64 {
        4 * self.arena as u64
    }

    /// What the whole plan must move and compute at least.
    pub fn floor(&self) -> Floor {
        let mut sum = Floor::default();
        self.steps.iter().for_each(|s| sum += s.call.floor());
        sum
    }
}

/// First and last step that touches each buffer; inputs live from the start, outputs to the end.
fn lives(plan: &Plan) -> Vec<(usize, usize)> {
    let mut lives = vec![(usize::MAX, 0); plan.buffers.len()];
    let mut touch = |slot: Slot, step: usize| {
        if let Slot::Buffer(b) = slot {
            lives[b] = (lives[b].0.min(step), lives[b].1.max(step));
        }
    };
    plan.inputs.iter().for_each(|s| touch(*s, 0));
    for (at, step) in plan.steps.iter().enumerate() {
        step.call.launch().slots().for_each(|s| touch(s, at + 1));
    }
    plan.outputs.iter().for_each(|s| touch(*s, plan.steps.len() + 1));
    lives
}

/// First fit, largest buffers first. A buffer that nobody touches gets offset 0.
fn place(sizes: &[usize], lives: &[(usize, usize)], shared: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|b| (std::cmp::Reverse(sizes[*b]), *b));
    let mut placed: Vec<Option<usize>> = vec![None; sizes.len()];
    for b in order {
        if lives[b].0 == usize::MAX {
            continue;
        }
        let overlaps = |o: usize| !shared || (lives[o].0 <= lives[b].1 && lives[b].0 <= lives[o].1);
        let mut taken: Vec<(usize, usize)> =
            (0..sizes.len()).filter(|o| overlaps(*o)).filter_map(|o| placed[o].map(|at| (at, at + sizes[o]))).collect();
        taken.sort_unstable();
        let mut at = 0;
        for (from, to) in taken {
            if at + sizes[b] <= from {
                break;
            }
            at = at.max(to.next_multiple_of(ALIGN));
        }
        placed[b] = Some(at);
    }
    placed.into_iter().map(|p| p.unwrap_or(0)).collect()
}

/// Constants of a model: 32-bit words, equal ones once.
#[derive(Debug, Default)]
pub struct Constants {
    words: Vec<Arc<[u32]>>,
    seen: std::collections::HashMap<Arc<[u32]>, usize>,
}

impl Constants {
    /// The slot of these words.
    pub fn intern(&mut self, words: Vec<u32>) -> Slot {
        let words: Arc<[u32]> = words.into();
        let next = self.words.len();
        let id = *self.seen.entry(words.clone()).or_insert(next);
        if id == next {
            self.words.push(words);
        }
        Slot::Constant(id)
    }

    /// The slot of these numbers.
    pub fn floats(&mut self, values: &[f32]) -> Slot {
        self.intern(values.iter().map(|v| v.to_bits()).collect())
    }

    /// All constants in the order of their numbers.
    pub fn all(&self) -> &[Arc<[u32]>] {
        &self.words
    }

    /// Device memory of all constants, bytes.
    pub fn bytes(&self) -> u64 {
        self.words.iter().map(|w| 4 * w.len() as u64).sum()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let floor = self.floor();
        let unshared: usize = self.buffers.iter().sum();
        writeln!(
            f,
            "batch {}: {} calls, {:.1} KiB of activations ({:.1} KiB without sharing), at least {:.1} KiB moved and {:.3} M operations",
            self.batch,
            self.steps.len(),
            self.arena_bytes() as f64 / 1024.0,
            4.0 * unshared as f64 / 1024.0,
            floor.bytes as f64 / 1024.0,
            floor.operations as f64 / 1e6
        )?;
        for step in &self.steps {
            let (launch, floor) = (step.call.launch(), step.call.floor());
            let size = |d: [u32; 3]| format!("{}x{}x{}", d[0], d[1], d[2]);
            writeln!(
                f,
                "  {:18} grid {:12} block {:9} {:10.1} KiB {:10.3} M  {}",
                launch.kernel,
                size(launch.grid),
                size(launch.block),
                floor.bytes as f64 / 1024.0,
                floor.operations as f64 / 1e6,
                step.node
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn buffers_that_live_together_do_not_overlap(
            buffers in proptest::collection::vec((1usize..300, 0usize..20, 0usize..8), 1..24),
        ) {
            let sizes: Vec<usize> = buffers.iter().map(|b| b.0).collect();
            let lives: Vec<(usize, usize)> = buffers.iter().map(|b| (b.1, b.1 + b.2)).collect();
            let placed = place(&sizes, &lives, true);
            for a in 0..sizes.len() {
                prop_assert_eq!(placed[a] % ALIGN, 0);
                for b in 0..a {
                    let together = lives[a].0 <= lives[b].1 && lives[b].0 <= lives[a].1;
                    let apart = placed[a] + sizes[a] <= placed[b] || placed[b] + sizes[b] <= placed[a];
                    prop_assert!(!together || apart);
                }
            }
            let end = |p: &[usize]| sizes.iter().zip(p).map(|(n, at)| n + at).max();
            prop_assert!(end(&placed) <= end(&place(&sizes, &lives, false)));
        }
    }

    #[test]
    fn equal_constants_are_kept_once() {
        let mut constants = Constants::default();
        let a = constants.floats(&[1.0, 2.0]);
        assert_ne!(a, constants.floats(&[1.0, 3.0]));
        assert_eq!(a, constants.floats(&[1.0, 2.0]));
        assert_eq!(constants.bytes(), 16);
    }
}
