//! Turns `proto/` into Rust, without a `protoc` on the machine, and keeps the descriptions of all
//! messages for server reflection.

use std::error::Error;
use std::path::PathBuf;

use protox::prost::Message;
use tonic_prost_build::FileDescriptorSet;

/// The file whose services nodes offer each other, and where what is made of them goes.
const BETWEEN_NODES_FILE: &str = "quorate/v1/transport.proto";
const BETWEEN_NODES: &str = "between-nodes";
const FILES: [&str; 6] = ["kv", "cluster", "admin", "placement", "transport", "error"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = FILES.map(|name| format!("quorate/v1/{name}.proto"));
    let descriptors: FileDescriptorSet = protox::compile(files, ["proto"])?;
    let directory = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(
        directory.join("quorate.descriptors"),
        descriptors.encode_to_vec(),
    )?;
    let (messages, between_nodes) = parted(descriptors);
    // Keys and values are slices of the received buffer, not copies of it.
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::wire::codec::BoundedCodec")
        .compile_fds(messages)?;
    let directory = directory.join(BETWEEN_NODES);
    std::fs::create_dir_all(&directory)?;
    tonic_prost_build::configure()
        .out_dir(directory)
        .codec_path("crate::wire::checked::CheckedCodec")
        .compile_fds(between_nodes)?;
    Ok(())
}

/// Everything without the services between nodes, and these alone: their messages have a checksum.
fn parted(whole: FileDescriptorSet) -> (FileDescriptorSet, FileDescriptorSet) {
    let (mut messages, mut between_nodes) = (whole.clone(), whole);
    let is_between_nodes = |name: Option<&str>| name == Some(BETWEEN_NODES_FILE);
    for file in &mut messages.file {
        if is_between_nodes(file.name.as_deref()) {
            file.service.clear();
        }
    }
    between_nodes
        .file
        .retain(|file| is_between_nodes(file.name.as_deref()));
    for file in &mut between_nodes.file {
        file.message_type.clear();
        file.enum_type.clear();
        file.dependency.clear();
    }
    (messages, between_nodes)
}
