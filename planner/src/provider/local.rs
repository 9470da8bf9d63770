//! Nodes as child processes on this machine.
//!
//! A child's stdin is a pipe that this process holds and never writes to. The child ends when it closes, so children
//! go with their planner even if that is killed. Stopping closes it, waits for the grace time, then kills. Ended
//! children are always reaped: by `list`, by `stop`, or by `shutdown`.
//!
//! Invariants: at most one child for a node id; no child outlives [`Provider::shutdown`].
//! Left out: limits on what a child may use (its worker permits are given as `--cores`), and rotation of its log,
//! which grows until the folder is removed.

use super::{NodeOrder, Provider, ProviderError, ProviderNode};
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

/// How a child is started: `program args_prefix… --node ID --flavor NAME --cores N --boot-ms MS`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalSpec {
    /// Program, usually this one.
    pub program: PathBuf,
    /// Arguments before those of the node.
    pub args_prefix: Vec<String>,
    /// Environment on top of this process's.
    pub env: BTreeMap<String, String>,
    /// Folder for `<node>.log`, which gets stdout and stderr; made if it does not exist.
    pub log_dir: PathBuf,
    /// Time that a child has to end after its stdin closed.
    pub grace: Duration,
}

struct Running {
    flavor: String,
    child: Child,
    /// Its unexpected end has been logged.
    end_logged: bool,
}

/// See the module.
pub struct LocalProvider {
    spec: LocalSpec,
    running: Mutex<BTreeMap<String, Running>>,
    /// Children that are ending; bounded by the nodes that there were.
    ending: Mutex<JoinSet<()>>,
}

impl LocalProvider {
    /// A provider without nodes.
    pub fn new(spec: LocalSpec) -> Self {
        LocalProvider { spec, running: Mutex::default(), ending: Mutex::default() }
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<String, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ending(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log_path(&self, node: &str) -> PathBuf {
        self.spec.log_dir.join(format!("{node}.log"))
    }

    fn log(&self, node: &str) -> std::io::Result<(File, File)> {
        std::fs::create_dir_all(&self.spec.log_dir)?;
        let file = OpenOptions::new().create(true).append(true).open(self.log_path(node))?;
        Ok((file.try_clone()?, file))
    }

    fn spawn(&self, order: &NodeOrder) -> Result<Child, ProviderError> {
        let failed = |what: String| move |source| ProviderError { node: order.node.clone(), what, source };
        let path = self.log_path(&order.node);
        let (out, err) = self.log(&order.node).map_err(failed(format!("cannot open its log {}", path.display())))?;
        Command::new(&self.spec.program)
            .args(&self.spec.args_prefix)
            .args(["--node", &order.node, "--flavor", &order.flavor])
            .args(["--cores", &order.cores.to_string(), "--boot-ms", &order.boot_ms.to_string()])
            .envs(&self.spec.env)
            .stdin(Stdio::piped())
            .stdout(out)
            .stderr(err)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed(format!("cannot start {}", self.spec.program.display())))
    }

    fn take(&self, node: &str) -> Option<Running> {
        self.running().remove(node)
    }

    fn end(&self, node: String, running: Running) {
        let grace = self.spec.grace;
        let mut ending = self.ending();
        // What has ended since is forgotten, so the set holds only what is ending now.
        while ending.try_join_next().is_some() {}
        ending.spawn(end(node, running.child, grace));
    }
}

/// Closes stdin, waits, kills, reaps.
async fn end(node: String, mut child: Child, grace: Duration) {
    drop(child.stdin.take());
    match tokio::time::timeout(grace, child.wait()).await {
        Ok(Ok(status)) => tracing::info!(node, %status, "node ended"),
        Ok(Err(error)) => tracing::warn!(node, %error, "node could not be waited for"),
        Err(_) => match child.kill().await {
            Ok(()) => tracing::warn!(node, ?grace, "node did not end in time and was killed"),
            Err(error) => tracing::warn!(node, %error, "node did not end in time and could not be killed"),
        },
    }
}

impl Running {
    /// Reaps the child if it has ended.
    fn is_alive(&mut self, node: &str, log: &std::path::Path) -> bool {
        let status = match self.child.try_wait() {
            Ok(None) => return true,
            Ok(Some(status)) => status.to_string(),
            Err(error) => error.to_string(),
        };
        if !std::mem::replace(&mut self.end_logged, true) {
            tracing::warn!(node, status, log = %log.display(), "node ended by itself");
        }
        false
    }
}

#[async_trait]
impl Provider for LocalProvider {
    async fn start(&self, order: NodeOrder) -> Result<(), ProviderError> {
        let path = self.log_path(&order.node);
        let mut running = self.running();
        if running.get_mut(&order.node).is_some_and(|r| r.is_alive(&order.node, &path)) {
            return Ok(());
        }
        let child = self.spawn(&order)?;
        tracing::info!(node = order.node, flavor = order.flavor, pid = child.id(), log = %path.display(), "node started");
        running.insert(order.node, Running { flavor: order.flavor, child, end_logged: false });
        Ok(())
    }

    async fn stop(&self, node: &str) -> Result<(), ProviderError> {
        if let Some(running) = self.take(node) {
            self.end(node.to_owned(), running);
        }
        Ok(())
    }

    async fn list(&self) -> Vec<ProviderNode> {
        let mut nodes = Vec::new();
        for (node, running) in self.running().iter_mut() {
            let alive = running.is_alive(node, &self.log_path(node));
            nodes.push(ProviderNode { node: node.clone(), flavor: running.flavor.clone(), alive });
        }
        nodes
    }

    async fn shutdown(&self) {
        let all = std::mem::take(&mut *self.running());
        for (node, running) in all {
            self.end(node, running);
        }
        let mut ending = std::mem::take(&mut *self.ending());
        while ending.join_next().await.is_some() {}
    }
}

#[cfg(all(test, unix))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn provider(dir: &std::path::Path, script: &str, grace: Duration) -> LocalProvider {
        LocalProvider::new(LocalSpec {
            program: "/bin/sh".into(),
            args_prefix: vec!["-c".into(), script.into(), "node".into()],
            env: BTreeMap::from([("GREETING".to_owned(), "hello".to_owned())]),
            log_dir: dir.join("logs"),
            grace,
        })
    }

    fn order(node: &str) -> NodeOrder {
        NodeOrder { node: node.into(), flavor: "small".into(), cores: 2, memory_gib: 0.0, gpus: 0, boot_ms: 7 }
    }

    fn log(dir: &std::path::Path, node: &str) -> String {
        std::fs::read_to_string(dir.join("logs").join(format!("{node}.log"))).unwrap()
    }

    #[tokio::test]
    async fn a_child_gets_its_arguments_and_ends_when_stdin_closes() {
        let dir = tempfile::tempdir().unwrap();
        let p = provider(dir.path(), "echo $GREETING \"$@\"; cat; echo closed >&2", Duration::from_secs(30));
        p.start(order("n-1")).await.unwrap();
        p.start(order("n-1")).await.unwrap();
        assert_eq!(p.list().await, [ProviderNode { node: "n-1".into(), flavor: "small".into(), alive: true }]);
        p.stop("n-1").await.unwrap();
        p.stop("n-1").await.unwrap();
        assert_eq!(p.list().await, []);
        p.shutdown().await;
        assert_eq!(log(dir.path(), "n-1"), "hello --node n-1 --flavor small --cores 2 --boot-ms 7\nclosed\n");
    }

    #[tokio::test]
    async fn a_child_that_does_not_end_is_killed_and_reaped() {
        let dir = tempfile::tempdir().unwrap();
        let p = provider(dir.path(), "exec sleep 1000", Duration::from_millis(50));
        p.start(order("stubborn")).await.unwrap();
        let pid = p.running()["stubborn"].child.id().unwrap();
        p.shutdown().await;
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "neither running nor a zombie");
    }

    #[tokio::test]
    async fn a_crash_is_seen_and_the_node_can_be_started_again() {
        let dir = tempfile::tempdir().unwrap();
        let p = provider(dir.path(), "test -e crashed || { touch crashed; exit 3; }; cat", Duration::from_secs(30));
        let p = LocalProvider::new(LocalSpec {
            args_prefix: vec!["-c".into(), format!("cd {}; {}", dir.path().display(), p.spec.args_prefix[1])],
            ..p.spec
        });
        p.start(order("n")).await.unwrap();
        // Its end is waited for, then seen by list.
        let mut child = p.take("n").unwrap();
        child.child.wait().await.unwrap();
        p.running().insert("n".into(), child);
        assert!(!p.list().await[0].alive);
        p.start(order("n")).await.unwrap();
        assert!(p.list().await[0].alive);
        p.shutdown().await;
    }

    #[tokio::test]
    async fn a_program_that_does_not_exist_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let p = LocalProvider::new(LocalSpec {
            program: "/no/such/program".into(),
            log_dir: dir.path().into(),
            ..Default::default()
        });
        let error = p.start(order("n")).await.unwrap_err().to_string();
        assert!(error.contains("node n: cannot start /no/such/program"), "{error}");
    }
}
