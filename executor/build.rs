//! Compiles `proto/open_inference.proto`, without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/open_inference.proto");
    let descriptors = protox::compile(["proto/open_inference.proto"], ["proto"])?;
    let mut config = tonic_prost_build::Config::new();
    // Raw tensors are slices of the message, not copies.
    config.bytes([
        ".inference.ModelInferRequest.raw_input_contents",
        ".inference.ModelInferResponse.raw_output_contents",
    ]);
    tonic_prost_build::configure()
        .build_client(true)
        .build_transport(false)
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}
