//! Output of commands: tables for people, JSON for programs, on stdout; a closed pipe is no error.

use crate::failure::Outcome;
use serde::Serialize;
use std::io::{ErrorKind, Write};

/// Writes text to stdout. A reader that went away (`| head`) ends it quietly.
pub fn print(text: &str) -> Outcome {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// As [`print`], with a line end.
pub fn print_line(text: &str) -> Outcome {
    print(&format!("{text}\n"))
}

/// Pretty JSON.
pub fn print_json<T: Serialize + ?Sized>(value: &T) -> Outcome {
    print_line(&serde_json::to_string_pretty(value)?)
}

/// A plain table.
pub fn print_table(header: &[&str], rows: Vec<Vec<String>>) -> Outcome {
    print_line(&table(header, rows))
}

/// A plain table as text.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header(header.iter().map(|h| h.to_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}
