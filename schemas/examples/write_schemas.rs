//! Writes the generated contract files into this crate's folder: `cargo run -p schemas --example write_schemas`.
//! `barista schema write` does the same from the binary.

use std::path::Path;

fn main() -> std::io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, content) in schemas::registry::generated_files() {
        let path = root.join(name);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(path, content)?;
    }
    Ok(())
}
