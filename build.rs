//! Turns `proto/` into Rust, without a `protoc` on the machine, and keeps the descriptions of all
//! messages for server reflection.

use std::error::Error;
use std::path::PathBuf;

use protox::prost::Message;
use tonic_prost_build::FileDescriptorSet;

const FILES: [&str; 5] = ["kv", "cluster", "placement", "transport", "error"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = FILES.map(|name| format!("quorate/v1/{name}.proto"));
    let descriptors: FileDescriptorSet = protox::compile(files, ["proto"])?;
    let directory = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(
        directory.join("quorate.descriptors"),
        descriptors.encode_to_vec(),
    )?;
    // Keys and values are slices of the received buffer, not copies of it.
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::wire::codec::BoundedCodec")
        .compile_fds(descriptors)?;
    Ok(())
}
