//! `barista schema list|print|write`: the contracts.

use crate::failure::{Outcome, usage};
use anyhow::Context as _;
use schemas::registry;
use std::path::PathBuf;

/// Contracts of every topic.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Names of all contracts.
    List {
        /// For a program.
        #[arg(long)]
        json: bool,
    },
    /// The JSON Schema of one contract, or `asyncapi` for the document of all topics.
    Print {
        /// Such as `workload.observed.v1`, `workload.observed` or `asyncapi`.
        name: String,
    },
    /// Writes every generated file (used by `just schemas`).
    Write {
        /// Folder to write into.
        #[arg(long, default_value = "schemas")]
        dir: PathBuf,
    },
}

/// Runs it.
pub fn run(command: Command) -> Outcome {
    match command {
        Command::List { json: true } => {
            let list: Vec<_> = registry::contracts()
                .iter()
                .map(|c| {
                    serde_json::json!({"name": c.name, "topic": c.topic, "key": c.key,
                        "written_by": c.written_by, "summary": c.summary})
                })
                .collect();
            crate::output::print_json(&list)
        }
        Command::List { json: false } => {
            let rows = registry::contracts()
                .iter()
                .map(|c| {
                    vec![
                        c.name.to_owned(),
                        c.topic.unwrap_or("(file)").to_owned(),
                        c.key.to_owned(),
                        c.summary.to_owned(),
                    ]
                })
                .collect();
            crate::output::print_table(&["contract", "topic", "key", "what"], rows)
        }
        Command::Print { name } if name == "asyncapi" => crate::output::print_json(&schemas::asyncapi::document()),
        Command::Print { name } => match registry::find(&name) {
            Some(contract) => crate::output::print_json(&contract.json_schema()),
            None => usage(format!("no contract `{name}`; `barista schema list` shows them")),
        },
        Command::Write { dir } => {
            for (name, content) in registry::generated_files() {
                let path = dir.join(name);
                if let Some(folder) = path.parent() {
                    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
                }
                std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
            }
            Ok(())
        }
    }
}
