//! A broker in a process of its own that can be killed: this test binary, run again.
//!
//! [`act`] looks like a test; with its environment set it becomes a broker and runs until killed.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use broker::{Broker, Config};

const FOLDER: &str = "NODE_TEST_FOLDER";
const LISTEN: &str = "NODE_TEST_LISTEN";
const READY: &str = "broker ready";

/// A broker that dies with this value, by SIGKILL.
#[derive(Debug)]
pub(crate) struct Victim {
    folder: PathBuf,
    pub(crate) address: SocketAddr,
    process: Option<std::process::Child>,
}

impl Victim {
    /// Starts a broker on `folder`, on an address that stays its own over restarts.
    pub(crate) fn start(folder: &Path) -> io::Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut victim = Self { folder: folder.to_owned(), address, process: None };
        victim.restart()?;
        Ok(victim)
    }

    /// Starts it again on what it left; returns when it serves.
    pub(crate) fn restart(&mut self) -> io::Result<()> {
        self.run(Command::new(std::env::current_exe()?))
    }

    /// The same, but no file may grow beyond `kib`: a write that would is cut short in the middle
    /// and then refused, as on a disk that is full.
    pub(crate) fn restart_on_a_small_disk(&mut self, kib: u32) -> io::Result<()> {
        let mut shell = Command::new("bash");
        // Without the trap the kernel's signal would end the process.
        shell.args(["-c", &format!("trap '' XFSZ; ulimit -f {kib}; exec \"$0\" \"$@\"")]);
        shell.arg(std::env::current_exe()?);
        self.run(shell)
    }

    fn run(&mut self, mut command: Command) -> io::Result<()> {
        let mut process = command
            .args(["child::act", "--exact", "--nocapture", "--test-threads=1"])
            .env(FOLDER, &self.folder)
            .env(LISTEN, self.address.to_string())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = process.stdout.take().ok_or_else(|| io::Error::other("no output to read"))?;
        self.process = Some(process);
        for line in BufReader::new(output).lines() {
            if line?.contains(READY) {
                return Ok(());
            }
        }
        Err(io::Error::other("the broker ended before it was ready"))
    }

    /// Kills it: no signal handler, no destructor, no last flush.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        let mut process = self.process.take().ok_or_else(|| io::Error::other("it is dead already"))?;
        process.kill()?;
        process.wait().map(|_| ())
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // Killing one that is dead already fails, which is fine.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

#[test]
fn act() {
    let (Ok(folder), Ok(listen)) = (std::env::var(FOLDER), std::env::var(LISTEN)) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut config = Config::new(folder);
        config.listen = listen.parse().unwrap();
        // Small segments and eager housekeeping, so that kills meet rolls, indexes and compactions.
        config.segment_bytes = 64 << 10;
        config.housekeeping_interval = Duration::from_millis(20);
        let _broker = Broker::start(config).await.unwrap();
        let mut out = io::stdout();
        writeln!(out, "\n{READY}").unwrap();
        out.flush().unwrap();
        std::future::pending::<()>().await;
    });
}
