//! Number of partitions: fixed when a store is created; every other number is refused.

use std::sync::Arc;

use harness::{Redis, unique_prefix};
use sessiond::{
    observe::Metrics,
    store::{Eviction, ReplicatedWrites, StartError, Store, StoreOptions},
};

/// All valid numbers of partitions.
const NUMBERS: [u16; 7] = [1, 2, 4, 8, 16, 32, 64];

async fn open(redis: &Redis, prefix: &str, partitions: u16) -> Result<Store, StartError> {
    let open = StoreOptions {
        url: &redis.url(),
        credentials: &Arc::default(),
        prefix,
        partitions,
        eviction: Eviction::Refused,
        replicated_writes: ReplicatedWrites::Disabled,
        feed_buffer: 16,
    };
    Store::open(open, Arc::new(Metrics::default())).await
}

/// Panics unless the store was refused because it has `expected` partitions.
#[track_caller]
fn expect_refusal(opened: Result<Store, StartError>, expected: u16, wanted: u16) {
    match opened {
        Ok(_) => panic!("a store of {expected} partitions was opened with {wanted}"),
        Err(StartError::Partitions { found, wanted: of }) => assert_eq!((found, of), (expected.to_string(), wanted)),
        Err(other) => panic!("{expected} partitions, opened with {wanted}: {other}"),
    }
}

#[tokio::test]
async fn store_any_other_partition_count_is_refused() {
    let redis = Redis::shared();
    for created in NUMBERS {
        let prefix = unique_prefix();
        let id = open(&redis, &prefix, created).await.unwrap().id();
        for wanted in NUMBERS.into_iter().filter(|wanted| *wanted != created) {
            expect_refusal(open(&redis, &prefix, wanted).await, created, wanted);
        }
        assert_eq!(open(&redis, &prefix, created).await.unwrap().id(), id);
    }
}

#[tokio::test]
async fn store_opened_twice_at_once_has_one_partition_count() {
    let redis = Redis::shared();
    for first in NUMBERS {
        for second in NUMBERS.into_iter().filter(|second| *second != first) {
            let prefix = unique_prefix();
            match tokio::join!(open(&redis, &prefix, first), open(&redis, &prefix, second)) {
                (Ok(_), refused) => expect_refusal(refused, first, second),
                (refused, Ok(_)) => expect_refusal(refused, second, first),
                (Err(one), Err(other)) => panic!("{first} and {second} partitions: {one}; {other}"),
            }
        }
    }
}
