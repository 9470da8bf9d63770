fn main() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, content) in schemas::registry::generated_files() {
        std::fs::write(root.join(name), content).unwrap();
    }
}
