//! Device memory: buffers at invented addresses, so that the host cannot read through a device pointer by mistake.

use super::fault::FaultKind;
use std::collections::BTreeMap;

/// Distance between the ends of two buffers: an index that runs past one does not land in the next.
const GUARD: u64 = 1 << 16;
/// Where device addresses begin; far from anything mapped in a process.
const FIRST: u64 = 0x00de_0000_0000_0000;

/// Who touched a word of global memory last.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Touch {
    writer: u32,
    write_phase: u32,
    reader: u32,
    read_phase: u32,
}

/// Marks more than one reader in the same phase.
const MANY: u32 = u32::MAX;
/// Bits of a thread's number within its block.
pub(crate) const THREAD_BITS: u32 = 10;

#[derive(Debug)]
pub(crate) struct Buffer {
    pub(crate) base: u64,
    pub(crate) bytes: Vec<u8>,
    written: Vec<bool>,
    touches: Vec<Touch>,
}

/// All live buffers of a device.
#[derive(Debug, Default)]
pub struct Memory {
    pub(crate) buffers: Vec<Buffer>,
    next: u64,
    /// Buffers that were given back: addresses are never used again. First byte and length.
    freed: BTreeMap<u64, usize>,
    /// Counts barriers and launches; never goes back, so that old touches are recognised.
    pub(crate) phase: u32,
    /// First phase of the launch that runs.
    pub(crate) launch_phase: u32,
    live: usize,
}

impl Memory {
    /// Bytes in live buffers.
    pub fn live_bytes(&self) -> usize {
        self.live
    }

    /// Number of live buffers.
    pub fn live_buffers(&self) -> usize {
        self.buffers.len()
    }

    /// A new buffer of `len` bytes, all unwritten and full of ones, which read as NaN.
    pub fn alloc(&mut self, len: usize) -> u64 {
        let base = FIRST + self.next;
        self.next += (len as u64).next_multiple_of(256) + GUARD;
        self.live += len;
        let buffer = Buffer { base, bytes: vec![0xff; len], written: vec![false; len], touches: Vec::new() };
        self.buffers.push(buffer);
        base
    }

    /// Gives a buffer back; false when none begins at `base`.
    pub fn free(&mut self, base: u64) -> bool {
        let Ok(at) = self.buffers.binary_search_by_key(&base, |b| b.base) else { return false };
        let len = self.buffers.remove(at).bytes.len();
        self.live -= len;
        self.freed.insert(base, len);
        true
    }

    /// True when an address lies in a buffer that was given back.
    pub fn was_freed(&self, address: u64) -> bool {
        self.freed.range(..=address).next_back().is_some_and(|(base, len)| address - base < *len as u64)
    }

    /// True when all of these bytes were written.
    pub(crate) fn is_written(&self, address: u64, len: usize) -> bool {
        self.find(address, len)
            .is_some_and(|(at, offset)| self.buffers[at].written[offset..offset + len].iter().all(|w| *w))
    }

    /// The buffer that holds `len` bytes at `address`, and their offset in it.
    pub(crate) fn find(&self, address: u64, len: usize) -> Option<(usize, usize)> {
        let at = self.buffers.partition_point(|b| b.base <= address).checked_sub(1)?;
        let offset = (address - self.buffers[at].base) as usize;
        (offset.checked_add(len)? <= self.buffers[at].bytes.len()).then_some((at, offset))
    }

    /// True when `len` bytes at `address` lie in one buffer.
    pub fn holds(&self, address: u64, len: usize) -> bool {
        self.find(address, len).is_some()
    }

    /// Copies host bytes to the device; false when they do not fit.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> bool {
        let Some((at, offset)) = self.find(address, bytes.len()) else { return false };
        let buffer = &mut self.buffers[at];
        buffer.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        buffer.written[offset..offset + bytes.len()].fill(true);
        true
    }

    /// Copies device bytes to the host; false when they are not there.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
        let Some((at, offset)) = self.find(address, bytes.len()) else { return false };
        bytes.copy_from_slice(&self.buffers[at].bytes[offset..offset + bytes.len()]);
        true
    }

    /// Copies within the device, keeping what is unwritten unwritten.
    pub fn copy(&mut self, to: u64, from: u64, len: usize) -> bool {
        let (Some((a, i)), Some((b, j))) = (self.find(to, len), self.find(from, len)) else { return false };
        let (bytes, written) =
            (self.buffers[b].bytes[j..j + len].to_vec(), self.buffers[b].written[j..j + len].to_vec());
        self.buffers[a].bytes[i..i + len].copy_from_slice(&bytes);
        self.buffers[a].written[i..i + len].copy_from_slice(&written);
        true
    }

    /// Opens a launch: nothing that was touched before races with it.
    pub(crate) fn begin_launch(&mut self) {
        if self.phase > u32::MAX / 2 {
            self.phase = 0;
            self.buffers.iter_mut().for_each(|b| b.touches.clear());
        }
        self.phase += 1;
        self.launch_phase = self.phase;
    }
}

impl Buffer {
    /// Records a read of `len` bytes at `offset` by thread `who`.
    #[inline]
    pub(crate) fn on_read(
        &mut self,
        offset: usize,
        len: usize,
        who: u32,
        phase: u32,
        launch: u32,
    ) -> Result<(), (FaultKind, &'static str)> {
        if !self.written[offset..offset + len].iter().all(|w| *w) {
            return Err((FaultKind::UnwrittenRead, "global memory nobody has written"));
        }
        self.grow();
        for word in offset / 4..(offset + len).div_ceil(4) {
            let touch = &mut self.touches[word];
            if touch.write_phase >= launch && touch.writer != who && clash(touch.writer, touch.write_phase, who, phase)
            {
                return Err((FaultKind::GlobalRace, "read of what another thread writes"));
            }
            if touch.read_phase >= launch && touch.reader != who {
                // Readers of several blocks, or of one phase: whoever writes later races with one of them.
                let same_block = touch.reader != MANY && touch.reader >> THREAD_BITS == who >> THREAD_BITS;
                touch.reader = if same_block && touch.read_phase != phase { who } else { MANY };
            } else {
                touch.reader = who;
            }
            touch.read_phase = phase;
        }
        Ok(())
    }

    /// Records a write.
    #[inline]
    pub(crate) fn on_write(
        &mut self,
        offset: usize,
        len: usize,
        who: u32,
        phase: u32,
        launch: u32,
    ) -> Result<(), (FaultKind, &'static str)> {
        self.grow();
        for word in offset / 4..(offset + len).div_ceil(4) {
            let touch = &mut self.touches[word];
            if touch.write_phase >= launch && touch.writer != who && clash(touch.writer, touch.write_phase, who, phase)
            {
                return Err((FaultKind::GlobalRace, "two threads write"));
            }
            let read_clash =
                touch.reader == MANY && touch.read_phase == phase || clash(touch.reader, touch.read_phase, who, phase);
            if touch.read_phase >= launch && touch.reader != who && read_clash {
                return Err((FaultKind::GlobalRace, "write of what another thread reads"));
            }
            touch.writer = who;
            touch.write_phase = phase;
        }
        self.written[offset..offset + len].fill(true);
        Ok(())
    }

    fn grow(&mut self) {
        if self.touches.is_empty() {
            self.touches = vec![Touch::default(); self.bytes.len().div_ceil(4)];
        }
    }
}

/// Accesses of two threads in one launch: unordered between blocks, and within a phase.
fn clash(other: u32, other_phase: u32, who: u32, phase: u32) -> bool {
    other >> THREAD_BITS != who >> THREAD_BITS || other_phase == phase
}

/// Who touched a word of shared memory last.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SharedTouch {
    writer: u32,
    write_phase: u32,
    reader: u32,
    read_phase: u32,
}

impl SharedTouch {
    /// Records a read; `block_phase` is the first phase of the block that runs.
    #[inline]
    pub(crate) fn on_read(&mut self, who: u32, phase: u32, block_phase: u32) -> Result<(), (FaultKind, &'static str)> {
        if self.write_phase < block_phase {
            return Err((FaultKind::UnwrittenRead, "shared memory nobody has written"));
        }
        if self.write_phase == phase && self.writer != who {
            return Err((FaultKind::SharedRace, "read of what another thread writes"));
        }
        self.reader = if self.read_phase == phase && self.reader != who { MANY } else { who };
        self.read_phase = phase;
        Ok(())
    }

    /// Records a write.
    #[inline]
    pub(crate) fn on_write(&mut self, who: u32, phase: u32) -> Result<(), (FaultKind, &'static str)> {
        if self.write_phase == phase && self.writer != who {
            return Err((FaultKind::SharedRace, "two threads write"));
        }
        if self.read_phase == phase && self.reader != who {
            return Err((FaultKind::SharedRace, "write of what another thread reads"));
        }
        self.writer = who;
        self.write_phase = phase;
        Ok(())
    }
}
