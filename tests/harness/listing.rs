//! Lists that are read page by page, with something in between.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use sessiond_client::v1::ListSessionsRequest;

use super::{Client, eventually};

/// So many that one partition is listed by a cursor of Redis.
const SESSIONS: usize = 1_500;
const PAGE: i32 = 100;

/// The ids of so many sessions that a partition which has them all is listed by a cursor of Redis.
pub async fn made_for_a_cursor(client: &Client) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    while ids.len() < SESSIONS {
        ids.extend(join_all((0..20).map(async |_| client.create(&[]).await.0.id)).await);
    }
    ids
}

/// The ids in a page, and where the list goes on; empty = that was all. None = refused.
async fn page(client: &Client, page_token: &str) -> Option<(Vec<String>, String)> {
    let request = ListSessionsRequest {
        namespace: client.namespace.clone(),
        page_size: PAGE,
        page_token: page_token.into(),
        ..Default::default()
    };
    let page = client.grpc.clone().list_sessions(request).await.ok()?.into_inner();
    Some((page.sessions.into_iter().map(|session| session.id).collect(), page.next_page_token))
}

/// About half of them, and where the list goes on.
pub async fn half_of_the_list(client: &Client, sessions: &BTreeSet<String>) -> (BTreeSet<String>, String) {
    let (mut listed, mut page_token) = (BTreeSet::new(), String::new());
    while listed.len() < sessions.len() / 2 {
        let (ids, next) = page(client, &page_token).await.expect("it is listed");
        listed.extend(ids);
        page_token = next;
    }
    assert!(listed.len() < sessions.len() && !page_token.is_empty());
    (listed, page_token)
}

/// What is listed from there on.
pub async fn rest_of_the_list(client: &Client, mut page_token: String) -> BTreeSet<String> {
    let mut listed = BTreeSet::new();
    while !page_token.is_empty() {
        let (ids, next) = eventually("it is listed", async || page(client, &page_token).await).await;
        listed.extend(ids);
        page_token = next;
    }
    listed
}
