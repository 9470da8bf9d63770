//! From files back to state, after a clean stop or a crash.
//!
//! Closed segments come from their index files, or from a scan when those are missing. The last
//! segment with records is always scanned, checksums included. A crash of the process can leave
//! only one kind of damage: a last batch of which only a beginning was written. That torn tail is
//! cut off. Damage that sound batches follow is something else (a bad disk, a power cut): it stays
//! where it is, is reported, and readers lose those records only.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

use super::batch::{self, BatchHeader};
use super::producers::Producers;
use super::segment::{self, Headers, Placed};
use super::state::{LogState, Segment};
use crate::Error;

/// What a scan starts from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Opening {
    /// Where the log starts by the metadata; files may start later, never earlier matter.
    pub(crate) start: i64,
    /// Segment size by the topic's configuration, for new indexes.
    pub(crate) segment_bytes: u64,
    /// Wall clock.
    pub(crate) now_ms: i64,
}

/// Brings the log in `dir` back; creates the folder when it is not there.
pub(crate) fn open(dir: &Path, opening: Opening) -> Result<LogState, Error> {
    fs::create_dir_all(dir).map_err(Error::io("cannot create", dir))?;
    let files = list(dir)?;
    let last = files.iter().rposition(|(_, size)| *size > 0);
    let mut producers = Producers::default();
    let mut segments = Vec::with_capacity(files.len());
    for (i, &(base, size)) in files.iter().enumerate() {
        if Some(i) != last
            && let Some((segment, then)) = segment::read_index(dir, base, size)
        {
            producers = then;
            segments.push(segment);
            continue;
        }
        let path = segment::log_path(dir, base);
        let mut scan = Scan {
            segment: Segment::empty(base, opening.segment_bytes),
            producers: &mut producers,
            now_ms: opening.now_ms,
        };
        scan.run(&path, size).map_err(Error::io("cannot read", &path))?;
        let segment = scan.segment;
        if Some(i) == last && segment.size < size {
            cut(&path, segment.size, size)?;
        } else if segment.size < size {
            tracing::error!(
                path = %path.display(), readable = segment.size, size,
                "closed segment is damaged: records behind this point cannot be read; left as it is"
            );
        } else if Some(i) != last && size > 0 {
            write_back(dir, &segment, &producers);
        }
        segments.push(segment);
    }
    drop_misplaced_tail(dir, &mut segments)?;
    Ok(LogState::new(opening.start, segments, producers, opening.segment_bytes))
}

/// The segment files by base offset; removes what an interrupted replacement left.
fn list(dir: &Path) -> Result<Vec<(i64, u64)>, Error> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io("cannot list", dir))? {
        let path = entry.map_err(Error::io("cannot list", dir))?.path();
        if path.extension().is_some_and(|extension| extension == "tmp") {
            fs::remove_file(&path).map_err(Error::io("cannot remove", &path))?;
        } else if let Some(base) = segment::base_of(&path) {
            let size = fs::metadata(&path).map_err(Error::io("cannot read", &path))?.len();
            files.push((base, size));
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn cut(path: &Path, keep: u64, size: u64) -> Result<(), Error> {
    tracing::warn!(path = %path.display(), keep, size, "torn tail of an interrupted write cut off");
    let file = OpenOptions::new().write(true).open(path).map_err(Error::io("cannot open", path))?;
    file.set_len(keep).map_err(Error::io("cannot truncate", path))
}

fn write_back(dir: &Path, segment: &Segment, producers: &Producers) {
    if let Err(error) = segment::write_index(dir, segment, producers, false) {
        tracing::warn!(dir = %dir.display(), base = segment.base, %error,
            "cannot write the index of a closed segment; the next start scans it again");
    }
}

/// An empty last segment whose base lies behind the (cut) end of its predecessor would leave a
/// hole in the offsets that were never acknowledged: the predecessor becomes the last one again.
fn drop_misplaced_tail(dir: &Path, segments: &mut Vec<Segment>) -> Result<(), Error> {
    while let [.., before, last] = segments.as_slice() {
        if last.size > 0 || before.end >= last.base {
            break;
        }
        let path = segment::log_path(dir, last.base);
        fs::remove_file(&path).map_err(Error::io("cannot remove", &path))?;
        segments.pop();
    }
    Ok(())
}

struct Scan<'a> {
    segment: Segment,
    producers: &'a mut Producers,
    now_ms: i64,
}

impl Scan<'_> {
    /// Reads the segment up to its end or to where whole batches end.
    fn run(&mut self, path: &Path, size: u64) -> io::Result<()> {
        let file = File::open(path)?;
        let mut headers = Headers::new(&file, 0, size);
        while let Some(next) = headers.next_batch()? {
            if let Ok(placed) = next {
                let bytes = segment::read_batch(&file, &placed)?;
                if self.is_sound(&placed.header, &bytes) && self.fits(&file, &placed, size)? {
                    self.segment.note(&placed.header, self.now_ms);
                    let ending = batch::ending(&placed.header, &bytes);
                    self.segment.note_producer(self.producers, &placed.header, ending, self.now_ms);
                    continue;
                }
            }
            let at = self.segment.size;
            let Some(follower) = self.resynchronise(&file, at, size)? else { break };
            tracing::error!(path = %path.display(), from = at, to = follower.position,
                "damaged records that whole ones follow: left as they are");
            self.segment.skip_to(follower.position, follower.header.base_offset);
            headers = Headers::new(&file, follower.position, size);
        }
        Ok(())
    }

    fn is_sound(&self, header: &BatchHeader, batch: &[u8]) -> bool {
        header.base_offset >= self.segment.end
            && header.last_offset_delta >= 0
            && header.count >= 0
            && batch::verify_crc(header, batch).is_ok()
    }

    /// Whether the offset of a sound batch can be right. The checksum does not cover it, so a jump
    /// (which compaction leaves) counts only if the next batch lies behind it.
    fn fits(&self, file: &File, placed: &Placed, size: u64) -> io::Result<bool> {
        let jump = placed.header.base_offset - self.segment.end;
        if jump == 0 {
            return Ok(true);
        }
        let behind = placed.position + placed.header.size as u64;
        let next = Headers::new(file, behind, size).next_batch()?;
        Ok(jump <= i64::from(i32::MAX)
            && match next {
                Some(Ok(next)) => next.header.base_offset >= placed.header.next_offset(),
                _ => true,
            })
    }

    /// Searches behind damage for the next sound batch.
    fn resynchronise(&self, file: &File, at: u64, size: u64) -> io::Result<Option<Placed>> {
        let left = usize::try_from(size - at).unwrap_or(usize::MAX);
        let bytes = segment::read_at(file, at, left)?;
        let plausible = |header: &BatchHeader| {
            header.base_offset > self.segment.end && header.base_offset - self.segment.end <= i64::from(i32::MAX)
        };
        for (skipped, rest) in (1..bytes.len()).map(|i| (i, &bytes[i..])) {
            let Ok(header) = BatchHeader::parse(rest) else { continue };
            if plausible(&header) && self.is_sound(&header, rest) {
                return Ok(Some(Placed { position: at + skipped as u64, header }));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
#[path = "recovery_tests.rs"]
mod tests;
