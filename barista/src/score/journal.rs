//! The output file: lines appended in order, and where a run that was killed goes on.
//!
//! Beside it, `<output>.job` says what it was made from, so that another input is not mixed in.

use super::RowId;
use super::answer::{is_rejected, row_of_line};
use crate::failure::{Outcome, usage};
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

/// What an output is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Prediction service.
    pub service: String,
    /// `topic:<name>`, or the path of the file.
    pub input: String,
    /// Size and time of change of the file, milliseconds; absent for a topic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<(u64, u128)>,
}

/// What the lines that were there already say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Done {
    /// Next row of each partition.
    pub next: BTreeMap<i32, i64>,
    /// Lines.
    pub rows: u64,
    /// Lines of rows that were rejected.
    pub rejected: u64,
}

/// The output, open at its end.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    out: BufWriter<File>,
}

impl Journal {
    /// Opens an output, new or of a run that ended before its input did; a line that was cut short is dropped.
    pub fn open(path: &Path, origin: &Origin) -> Outcome<(Self, Done)> {
        claim(path, origin)?;
        let cannot = || format!("cannot write {}", path.display());
        let file = OpenOptions::new().read(true).append(true).create(true).open(path).with_context(cannot)?;
        // A second run on the same output would double lines.
        if let Err(error) = file.try_lock() {
            return usage(format!("{}: another `barista score` writes it ({error})", path.display()));
        }
        let (done, whole) = read(&file, path)?;
        file.set_len(whole).with_context(cannot)?;
        Ok((Journal { path: path.to_owned(), out: BufWriter::new(file) }, done))
    }

    /// Appends a line.
    pub fn push(&mut self, line: &str) -> Outcome {
        self.out
            .write_all(line.as_bytes())
            .and_then(|()| self.out.write_all(b"\n"))
            .with_context(|| format!("cannot write {}", self.path.display()))?;
        Ok(())
    }

    /// What was appended survives the end of the machine.
    pub fn sync(&mut self) -> Outcome {
        let cannot = || format!("cannot write {}", self.path.display());
        self.out.flush().with_context(cannot)?;
        self.out.get_ref().sync_data().with_context(cannot)?;
        Ok(())
    }
}

/// Makes sure that this output is of this origin.
fn claim(path: &Path, origin: &Origin) -> Outcome {
    let mut name = path.as_os_str().to_owned();
    name.push(".job");
    let job = PathBuf::from(name);
    match std::fs::read(&job) {
        Ok(bytes) => match serde_json::from_slice::<Origin>(&bytes) {
            Ok(found) if found == *origin => Ok(()),
            _ => usage(format!(
                "{} was made from something else ({}); give another --output, or remove both",
                path.display(),
                job.display()
            )),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if std::fs::metadata(path).is_ok_and(|m| m.len() > 0) {
                return usage(format!("{} is no output of this command; give another --output", path.display()));
            }
            // Whole or not at all: a half one would lock the output out for ever.
            let mut new = job.as_os_str().to_owned();
            new.push(".new");
            let new = PathBuf::from(new);
            std::fs::write(&new, serde_json::to_vec(origin)?)
                .and_then(|()| std::fs::rename(&new, &job))
                .with_context(|| format!("cannot write {}", job.display()))?;
            Ok(())
        }
        Err(error) => Err(anyhow::Error::new(error).context(format!("cannot read {}", job.display())).into()),
    }
}

/// What the whole lines say, and where the last of them ends.
fn read(file: &File, path: &Path) -> Outcome<(Done, u64)> {
    let mut reader = BufReader::new(file);
    let (mut done, mut whole, mut line) = (Done::default(), 0u64, Vec::new());
    loop {
        line.clear();
        let n = reader.read_until(b'\n', &mut line).with_context(|| format!("cannot read {}", path.display()))?;
        if n == 0 || line.last() != Some(&b'\n') {
            return Ok((done, whole));
        }
        let read: Option<(RowId, bool)> = serde_json::from_slice::<serde_json::Value>(&line)
            .ok()
            .and_then(|value| Some((row_of_line(&value)?, is_rejected(&value))));
        let Some((row, rejected)) = read else {
            return usage(format!("{}: line {} is none of this command", path.display(), done.rows + 1));
        };
        done.next.insert(row.partition, row.number + 1);
        done.rows += 1;
        done.rejected += u64::from(rejected);
        whole += n as u64;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::failure::Failure;

    fn origin(input: &str) -> Origin {
        Origin { service: "a".to_owned(), input: input.to_owned(), file: None }
    }

    fn line(partition: i32, row: i64) -> String {
        format!(r#"{{"partition":{partition},"row":{row},"outputs":{{}}}}"#)
    }

    #[test]
    fn a_journal_cut_anywhere_goes_on_behind_its_last_whole_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        let (mut journal, done) = Journal::open(&path, &origin("x")).unwrap();
        assert_eq!(done, Done::default());
        for row in 0..4 {
            journal.push(&line(0, row)).unwrap();
        }
        journal.push(r#"{"partition":2,"row":9,"rejected":{}}"#).unwrap();
        journal.sync().unwrap();
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let lines = whole[..cut].iter().filter(|b| **b == b'\n').count() as u64;
            let (mut journal, done) = Journal::open(&path, &origin("x")).unwrap();
            assert_eq!((done.rows, done.rejected), (lines, u64::from(lines == 5)));
            let next = done.next.get(&0).copied().unwrap_or(0);
            assert_eq!((next, done.next.get(&2)), (lines.min(4) as i64, (lines == 5).then_some(&10)));
            journal.push(&line(1, 1)).unwrap();
            journal.sync().unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.lines().all(|l| serde_json::from_str::<serde_json::Value>(l).is_ok()), "{text}");
        }
    }

    #[test]
    fn neither_another_input_nor_a_second_run_nor_a_strange_file_is_mixed_in() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        let (journal, _) = Journal::open(&path, &origin("x")).unwrap();
        for (other, says) in [("y", "something else"), ("x", "another `barista score`")] {
            let refused = Journal::open(&path, &origin(other)).unwrap_err();
            assert!(matches!(&refused, Failure::Usage(text) if text.contains(says)), "{refused}");
        }
        drop(journal);
        std::fs::write(&path, "hello\n").unwrap();
        assert!(Journal::open(&path, &origin("x")).is_err());
        let strange = folder.path().join("notes.txt");
        std::fs::write(&strange, "hello\n").unwrap();
        assert!(Journal::open(&strange, &origin("x")).is_err());
        assert_eq!(std::fs::read_to_string(&strange).unwrap(), "hello\n", "left as it was");
    }
}
