//! Responses as canonical proto3 JSON, by the descriptors that reflection serves.

use std::{io, sync::OnceLock};

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};

use crate::pb;

#[expect(clippy::expect_used, reason = "the build script encodes the descriptors")]
fn descriptors() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| DescriptorPool::decode(pb::DESCRIPTORS).expect("valid descriptors"))
}

/// Returns the message, whose name in `sessiond.v1` this is, as one line of JSON.
pub(super) fn line(name: &str, message: &impl Message) -> io::Result<String> {
    let descriptor = descriptors().get_message_by_name(&format!("sessiond.v1.{name}"));
    let descriptor = descriptor.ok_or_else(|| io::Error::other(format!("unknown message sessiond.v1.{name}")))?;
    let message = DynamicMessage::decode(descriptor, &message.encode_to_vec()[..]).map_err(io::Error::other)?;
    // A `Value` sorts its keys; the reflected message has its maps in random order.
    Ok(serde_json::to_value(&message)?.to_string())
}
