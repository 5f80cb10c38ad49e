//! Compiles the proto files without protoc, in two passes: the messages, and the service. Sessions in messages and the
//! responses of the Watch method are already encoded.

use std::{env, fs, path::PathBuf};

use tonic_prost_build::Builder;

const FILES: [&str; 3] = ["error_reason", "session", "session_service"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = FILES.map(|file| format!("sessiond/v1/{file}.proto"));
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;

    let mut messages = descriptors.clone();
    messages.file.iter_mut().for_each(|file| file.service.clear());
    builder().extern_path(".sessiond.v1.Session", "crate::pb::Session").compile_fds(messages)?;

    let service = out.join("service");
    fs::create_dir_all(&service)?;
    builder()
        .codec_path("crate::pb::Codec")
        .extern_path(".sessiond.v1", "crate::pb")
        .extern_path(".sessiond.v1.WatchResponse", "crate::pb::EncodedWatchResponse")
        .out_dir(service)
        .compile_fds(descriptors)?;
    Ok(())
}

/// Returns the builder of both passes. Maps are ordered, so that a request has one encoding; messages have no Debug,
/// because they may contain a token.
fn builder() -> Builder {
    tonic_prost_build::configure()
        .build_client(false)
        .btree_map(".")
        .skip_debug(["."])
        .bytes(".sessiond.v1.WatchResponse.resume_token")
}
