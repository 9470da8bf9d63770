//! The file behind the catalog: events appended under checksums, rewritten when it has grown.
//!
//! `catalog-<generation>.journal`, each record `length 4 | crc32c 4 | JSON`. A rewrite puts a
//! snapshot into a new file under a temporary name and renames it to the next generation; the
//! highest generation counts, older ones are removed. A record that was only partly written when
//! the process died is cut off, as nobody was told about it; damage in front of others is an error,
//! because guessing about topics and offsets is worse than stopping.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{Catalog, Event};
use crate::Error;
use crate::log::segment::sync_dir;

/// A journal smaller than this is not rewritten.
const REWRITE_FROM: u64 = 4 << 20;
const FRAME: usize = 8;

/// An open journal.
#[derive(Debug)]
pub(crate) struct Journal {
    dir: PathBuf,
    generation: u64,
    file: File,
    size: u64,
    /// Size right after the last rewrite.
    base_size: u64,
    /// A failed write could not be undone: nothing more may be appended behind it.
    is_broken: bool,
}

fn path(dir: &Path, generation: u64) -> PathBuf {
    dir.join(format!("catalog-{generation:010}.journal"))
}

fn generation_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    name.strip_prefix("catalog-")?.strip_suffix(".journal")?.parse().ok()
}

impl Journal {
    /// Opens the newest journal in `dir`, or begins one with `first`; returns the catalog too.
    pub(crate) fn open(dir: &Path, first: impl FnOnce() -> Event) -> Result<(Self, Catalog), Error> {
        let mut generations = Vec::new();
        for entry in fs::read_dir(dir).map_err(Error::io("cannot list", dir))? {
            let entry = entry.map_err(Error::io("cannot list", dir))?;
            generations.extend(generation_of(&entry.path()));
        }
        generations.sort_unstable();
        let Some(newest) = generations.pop() else { return Self::begin(dir, first()) };
        for old in generations {
            let old = path(dir, old);
            fs::remove_file(&old).map_err(Error::io("cannot remove", &old))?;
        }
        let at = path(dir, newest);
        let bytes = fs::read(&at).map_err(Error::io("cannot read", &at))?;
        let (catalog, sound) = replay(&bytes).map_err(|(position, what)| Error::Journal {
            path: at.clone(),
            at: position as u64,
            what,
        })?;
        let file = OpenOptions::new().read(true).write(true).open(&at).map_err(Error::io("cannot open", &at))?;
        if sound < bytes.len() {
            tracing::warn!(path = %at.display(), keep = sound, "torn journal record cut off");
            file.set_len(sound as u64).map_err(Error::io("cannot truncate", &at))?;
        }
        let (dir, size) = (dir.to_owned(), sound as u64);
        let journal = Self { dir, generation: newest, file, size, base_size: size, is_broken: false };
        Ok((journal, catalog))
    }

    fn begin(dir: &Path, first: Event) -> Result<(Self, Catalog), Error> {
        let mut catalog = Catalog::default();
        catalog.evolve(first);
        let journal = Self::write_generation(dir, 1, &catalog).map_err(Error::io("cannot write", &path(dir, 1)))?;
        Ok((journal, catalog))
    }

    fn write_generation(dir: &Path, generation: u64, catalog: &Catalog) -> io::Result<Self> {
        let mut bytes = Vec::new();
        for event in catalog.snapshot() {
            frame(&event, &mut bytes)?;
        }
        let at = path(dir, generation);
        let temporary = at.with_extension("tmp");
        fs::write(&temporary, &bytes)?;
        let file = OpenOptions::new().read(true).write(true).open(&temporary)?;
        file.sync_all()?;
        fs::rename(&temporary, &at)?;
        sync_dir(dir)?;
        let (dir, size) = (dir.to_owned(), bytes.len() as u64);
        Ok(Self { dir, generation, file, size, base_size: size, is_broken: false })
    }

    /// Appends events; when this returns they survive the death of the process (and, with `sync`,
    /// a power cut). After an error none of them does.
    pub(crate) fn append(&mut self, events: &[Event], sync: bool) -> io::Result<()> {
        if self.is_broken {
            return Err(io::Error::other("an earlier write to the metadata journal failed"));
        }
        let mut bytes = Vec::new();
        for event in events {
            frame(event, &mut bytes)?;
        }
        let written = self.file.write_all_at(&bytes, self.size);
        let done = written.and_then(|()| if sync { self.file.sync_data() } else { Ok(()) });
        if done.is_err() {
            self.is_broken = self.file.set_len(self.size).is_err();
            return done;
        }
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Whether most of the file is history.
    pub(crate) fn wants_rewrite(&self) -> bool {
        self.size >= REWRITE_FROM && self.size / 2 >= self.base_size
    }

    /// Replaces the file by a snapshot of `catalog`, which must be what the events led to.
    pub(crate) fn rewrite(&mut self, catalog: &Catalog) -> io::Result<()> {
        let old = path(&self.dir, self.generation);
        *self = Self::write_generation(&self.dir, self.generation + 1, catalog)?;
        fs::remove_file(old)
    }

    /// A handle to force the file to the disk without holding the store's lock.
    pub(crate) fn handle(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

fn frame(event: &Event, out: &mut Vec<u8>) -> io::Result<()> {
    let json = serde_json::to_vec(event).map_err(io::Error::other)?;
    let length = u32::try_from(json.len()).map_err(io::Error::other)?;
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&crc32c::crc32c(&json).to_be_bytes());
    out.extend_from_slice(&json);
    Ok(())
}

/// Applies the records in `bytes`; also says how many bytes hold whole records.
fn replay(bytes: &[u8]) -> Result<(Catalog, usize), (usize, String)> {
    let mut catalog = Catalog::default();
    let mut at = 0;
    while at < bytes.len() {
        let Some((crc, json)) = record(&bytes[at..]) else { break };
        if crc32c::crc32c(json) != crc {
            // The last record may have been written in part (a power cut can leave holes).
            if at + FRAME + json.len() == bytes.len() {
                break;
            }
            return Err((at, "the checksum does not match".to_owned()));
        }
        let event = serde_json::from_slice(json).map_err(|why| (at, why.to_string()))?;
        catalog.evolve(event);
        at += FRAME + json.len();
    }
    Ok((catalog, at))
}

/// Checksum and content of the record at the start of `bytes`, if all of it is there.
fn record(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    Some((u32::from_be_bytes(*crc), rest.get(..length)?))
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
