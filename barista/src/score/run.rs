//! The run: rows out, answers in, lines to the output, until the input ends.

use super::RowId;
use super::answer;
use super::journal::{Journal, Origin};
use super::mapping::MapOption;
use super::rows::{Input, Rows, Table, of_topic};
use super::window::Window;
use crate::failure::{Outcome, usage};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use runtime::backoff::Backoff;
use runtime::ports::Kind;
use runtime::{Bus, OutRecord, PortError, Record, Sink, Source, SourceEvent, SourceSpec, Start};
use schemas::headers;
use schemas::message::Message;
use schemas::status::{ExecutorStatus, ModelSignature};
use schemas::topics::{EXECUTOR_STATUS, PREDICTION_REJECTED, Topics};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How often what was written is made safe, and progress is told.
const SYNC: Duration = Duration::from_secs(1);

/// What is to be scored, and where it goes.
#[derive(Debug, Clone)]
pub struct Job {
    /// Prediction service.
    pub service: String,
    /// Rows.
    pub input: Input,
    /// File of lines.
    pub output: PathBuf,
    /// Rows on their way at once.
    pub in_flight: usize,
    /// Columns of inputs, for a file.
    pub map: Vec<MapOption>,
    /// Version of the model; absent: whichever serves.
    pub model_version: Option<String>,
}

/// How it ended.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Prediction service.
    pub service: String,
    /// Input.
    pub input: String,
    /// Output.
    pub output: String,
    /// Lines of the output.
    pub rows: u64,
    /// Of those, with outputs.
    pub scored: u64,
    /// Of those, with a rejection.
    pub rejected: u64,
    /// Lines that were there when this run began.
    pub resumed_rows: u64,
    /// False when it was stopped before the end of the input.
    pub complete: bool,
    /// Length of this run, seconds.
    pub seconds: f64,
    /// Lines of this run a second.
    pub rows_per_s: f64,
}

/// Where a run is.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Lines of the output.
    pub rows: u64,
    /// Rows of the input, where that is known.
    pub of: Option<u64>,
}

/// Scores until the input ends or `stop` is cancelled; what is written by then stays, and the next run goes on there.
pub async fn run(
    job: &Job,
    bus: &dyn Bus,
    stop: &CancellationToken,
    mut told: impl FnMut(Progress),
) -> Outcome<Summary> {
    let begin = Instant::now();
    let (name, table) = match &job.input {
        Input::Topic(topic) => (format!("topic:{topic}"), None),
        Input::Parquet(path) => (path.display().to_string(), Some(Table::open(path)?)),
    };
    let (mut journal, done) = Journal::open(&job.output, &origin(job)?)?;
    let of = table.as_ref().map(Table::rows);
    bus.create_topics(&Topics::scoring(&job.service)).await?;
    let Some(answers) = Answers::open(bus, &job.service, stop).await? else { return usage("stopped before it began") };
    let rows = match table {
        None => match &job.input {
            Input::Topic(topic) => of_topic(bus, topic, &done.next).await?,
            Input::Parquet(_) => return usage("no table"),
        },
        Some(table) => {
            let Some(signature) = signature(bus, &job.service, stop).await? else {
                return usage(format!("no node serves {} yet: stopped before it began", job.service));
            };
            table.read(&signature, &job.map, done.next.get(&0).copied().unwrap_or(0))?
        }
    };
    let mut feed = Feed {
        run: format!("{:016x}", rand::random::<u64>()),
        topic: bus.topics().batch(&job.service),
        version: job.model_version.clone(),
        sink: bus.sink(),
        rows,
        sending: FuturesUnordered::new(),
        ended: false,
        window: Window::new(job.in_flight),
    };
    let (mut lines, mut rejected) = (0u64, done.rejected);
    let mut sync = tokio::time::interval(SYNC);
    let mut answers = answers;
    while !feed.is_done() && !stop.is_cancelled() {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            _ = sync.tick() => {
                journal.sync()?;
                told(Progress { rows: done.rows + lines, of });
            }
            event = answers.0.next() => {
                let SourceEvent::Record(record) = event? else { continue };
                feed.answered(&record);
                while let Some(line) = feed.window.next_line() {
                    journal.push(&line)?;
                    lines += 1;
                    rejected += u64::from(line.contains(r#""rejected":{"#));
                }
            }
            Some(sent) = feed.sending.next(), if !feed.sending.is_empty() => sent?,
            row = feed.rows.next(), if !feed.ended && feed.window.has_room() => feed.take(row?),
        }
    }
    journal.sync()?;
    told(Progress { rows: done.rows + lines, of });
    let (rows, seconds) = (done.rows + lines, begin.elapsed().as_secs_f64());
    Ok(Summary {
        service: job.service.clone(),
        input: name,
        output: job.output.display().to_string(),
        rows,
        scored: rows - rejected,
        rejected,
        resumed_rows: done.rows,
        complete: feed.is_done(),
        seconds,
        rows_per_s: lines as f64 / seconds.max(1e-9),
    })
}

fn origin(job: &Job) -> Outcome<Origin> {
    let (input, file) = match &job.input {
        Input::Topic(topic) => (format!("topic:{topic}"), None),
        Input::Parquet(path) => {
            let meta = std::fs::metadata(path)?;
            let changed = meta.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            (std::fs::canonicalize(path)?.display().to_string(), Some((meta.len(), changed.as_millis())))
        }
    };
    Ok(Origin { service: job.service.clone(), input, file })
}

/// What is on its way.
struct Feed {
    /// Ties answers to this run.
    run: String,
    topic: String,
    version: Option<String>,
    sink: Arc<dyn Sink>,
    rows: Rows,
    /// Bounded by the window.
    sending: FuturesUnordered<BoxFuture<'static, Result<(), PortError>>>,
    /// The input has ended.
    ended: bool,
    window: Window,
}

impl Feed {
    fn is_done(&self) -> bool {
        self.ended && self.window.is_empty()
    }

    fn take(&mut self, row: Option<(RowId, OutRecord)>) {
        let Some((row, mut record)) = row else {
            self.ended = true;
            return;
        };
        self.window.sent(row);
        record.topic.clone_from(&self.topic);
        record = record.header(headers::SCORE_ROW, answer::header(&self.run, row));
        if let Some(version) = &self.version {
            record = record.header(headers::MODEL_VERSION, version.clone());
        }
        self.sending.push(Box::pin(deliver(self.sink.clone(), record)));
    }

    fn answered(&mut self, record: &Record) {
        if let Some(row) = answer::row_of(&self.run, record) {
            self.window.answered(row, || answer::line(row, record));
        }
    }
}

/// Sends until the delivery report comes; an error is one that trying again cannot mend.
async fn deliver(sink: Arc<dyn Sink>, record: OutRecord) -> Result<(), PortError> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), 0);
    loop {
        match sink.send(record.clone()).await {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == Kind::Transient && !matches!(error, PortError::Closed) => {
                let delay = backoff.next_delay();
                tracing::warn!(%error, ?delay, "a row cannot be sent for now");
                tokio::time::sleep(delay).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Scores and rejections from now on.
struct Answers(Box<dyn Source>);

impl Answers {
    /// Opens them and waits until they are read, so that nothing that is sent from now on is missed.
    async fn open(bus: &dyn Bus, service: &str, stop: &CancellationToken) -> Outcome<Option<Self>> {
        let topics = vec![bus.topics().scores(service), bus.topics().name(PREDICTION_REJECTED)];
        let mut source = bus.source(SourceSpec::assign(topics, Start::End)).await?;
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(None),
                event = source.next() => if matches!(event?, SourceEvent::CaughtUp) {
                    return Ok(Some(Answers(source)));
                },
            }
        }
    }
}

/// What the model of a service takes, from the heartbeat of a node that has it; waits for one.
async fn signature(bus: &dyn Bus, service: &str, stop: &CancellationToken) -> Outcome<Option<ModelSignature>> {
    let topic = bus.topics().name(EXECUTOR_STATUS);
    let mut source = bus.source(SourceSpec::assign(vec![topic], Start::Beginning)).await?;
    let mut newest = None;
    let mut caught_up = false;
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return Ok(None),
            event = source.next() => event?,
        };
        match event {
            SourceEvent::Record(record) => {
                let status = record.value.as_ref().and_then(|value| ExecutorStatus::decode(value).ok());
                let instances = status.into_iter().flat_map(|s| s.instances).filter(|i| i.service == service);
                newest = instances.filter_map(|i| i.signature).next_back().or(newest);
            }
            SourceEvent::CaughtUp => {
                caught_up = true;
                if newest.is_none() {
                    tracing::warn!(service, "no node serves it yet; waiting");
                }
            }
            SourceEvent::Assigned(_) | SourceEvent::Revoked(..) => {}
        }
        if caught_up && newest.is_some() {
            return Ok(newest);
        }
    }
}
