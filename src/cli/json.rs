//! Responses as canonical proto3 JSON, by the descriptors that reflection serves.

use std::{io, sync::OnceLock};

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};

use crate::pb;

fn descriptors() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| DescriptorPool::decode(pb::DESCRIPTORS).expect("the build has encoded them"))
}

/// The message of this name in `sessiond.v1`, on one line.
pub fn line(name: &str, message: &impl Message) -> io::Result<String> {
    let descriptor = descriptors().get_message_by_name(&format!("sessiond.v1.{name}"));
    let descriptor = descriptor.ok_or_else(|| io::Error::other(format!("sessiond.v1.{name} is not known")))?;
    let message = DynamicMessage::decode(descriptor, &message.encode_to_vec()[..]).map_err(io::Error::other)?;
    // Through a value, whose keys are sorted: maps come out in no order of their own.
    Ok(serde_json::to_value(&message)?.to_string())
}
