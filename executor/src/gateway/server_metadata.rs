//! What the server says of itself.

/// Name of the server.
pub(crate) const NAME: &str = "barista";

/// Version of the server.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Extensions of the protocol that are served, by the names that Triton gives them.
pub(crate) const EXTENSIONS: [&str; 4] =
    ["binary_tensor_data", "model_configuration", "model_repository", "statistics"];
