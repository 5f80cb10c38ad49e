//! Reads ListSessions page by page, so that a test can act between two pages.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use sessiond_client::v1::ListSessionsRequest;

use super::{Client, eventually};

/// Number of sessions to create: above 1,000 in one partition, ListSessions reads that partition with a Redis cursor.
const SESSIONS: usize = 1_500;
/// Page size, in sessions.
const PAGE: i32 = 100;

/// Creates so many sessions that ListSessions reads them with a Redis cursor if they are all in one partition; returns
/// their ids.
pub async fn create_enough_for_cursor(client: &Client) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    while ids.len() < SESSIONS {
        ids.extend(join_all((0..20).map(async |_| client.create(&[]).await.0.id)).await);
    }
    ids
}

/// Returns the ids of one page and the next page token, which is empty after the last page. None: the call failed.
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

/// Lists about half of these sessions; returns their ids and the next page token.
pub async fn list_first_half(client: &Client, sessions: &BTreeSet<String>) -> (BTreeSet<String>, String) {
    let (mut listed, mut page_token) = (BTreeSet::new(), String::new());
    while listed.len() < sessions.len() / 2 {
        let (ids, next) = page(client, &page_token).await.expect("a page");
        listed.extend(ids);
        page_token = next;
    }
    assert!(listed.len() < sessions.len() && !page_token.is_empty());
    (listed, page_token)
}

/// Lists all remaining pages from this page token on and returns their ids. Retries failed calls.
pub async fn list_rest(client: &Client, mut page_token: String) -> BTreeSet<String> {
    let mut listed = BTreeSet::new();
    while !page_token.is_empty() {
        let (ids, next) = eventually("a page is returned", async || page(client, &page_token).await).await;
        listed.extend(ids);
        page_token = next;
    }
    listed
}
