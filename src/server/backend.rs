//! What the service runs on: the store, its feed, and the consumers of the feed.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch as channel,
    time::{Instant, sleep, timeout_at},
};

use super::health::not_ready;
use crate::{
    auth::Authenticator,
    cache::Cache,
    config::Config,
    feed::{Consumer, Feed, Followers},
    grpc,
    observe::Metrics,
    service::Service,
    session::{Durability, Policies},
    store::{CurrentRedisCredentials, Eviction, Health, Position, ReplicatedWrites, StartError, Store, StoreOptions},
    tasks::Tasks,
    watch::{self, Hub, PageCache, RedisSource},
};

/// Pause after the first failed attempt to open the store; it doubles with each attempt.
const FIRST_START_PAUSE: Duration = Duration::from_millis(100);
/// Maximum pause between two attempts to open the store.
const LONGEST_START_PAUSE: Duration = Duration::from_secs(2);

/// Components that the service depends on.
pub(super) struct Backend {
    pub store: Arc<Store>,
    pub feed: Feed,
    pub followers: Followers,
    pub hub: Arc<Hub>,
    pub watch_source: Arc<RedisSource>,
    /// None: the near cache is off.
    pub cache: Option<Arc<Cache>>,
}

impl Backend {
    /// Opens the store at this URL. Tries again until `start_timeout` while the state of Redis prevents it.
    pub(super) async fn open(
        url: &str,
        config: &Config,
        credentials: &Arc<CurrentRedisCredentials>,
        policies: &Policies,
        metrics: &Arc<Metrics>,
        readiness: &channel::Sender<Health>,
    ) -> Result<Self, StartError> {
        let replicated = policies.all().any(|policy| policy.durability == Durability::Replicated);
        let options = StoreOptions {
            url,
            credentials,
            prefix: &config.key_prefix,
            partitions: config.partitions,
            eviction: if config.allow_eviction { Eviction::Allowed } else { Eviction::Refused },
            replicated_writes: if replicated { ReplicatedWrites::Enabled } else { ReplicatedWrites::Disabled },
            feed_buffer: config.limits.feed_buffer,
        };
        let (store, ends) = open_store(options, config, metrics, readiness).await?;
        let limits = watch::WatchLimits {
            watches: config.limits.watches,
            slow_consumer_timeout: config.limits.slow_consumer_timeout,
            response_timeout: config.limits.response_timeout,
            ring_slots: config.limits.ring_slots,
            largest_session: grpc::largest_session(policies),
        };
        let hub = Arc::new(Hub::new(store.id(), ends.clone(), limits, metrics.clone()));
        let cache = Cache::new(config.cache_bytes, ends.len(), metrics.clone()).map(Arc::new);
        let pages = Arc::new(PageCache::new(ends.len()));
        let (feed, followers) = Feed::new(store.clone(), ends, metrics.clone());
        let watch_source = Arc::new(RedisSource { store: store.clone(), feed: feed.clone(), pages });
        Ok(Backend { store, feed, followers, hub, watch_source, cache })
    }

    /// Starts the tasks of the components, and returns the use cases on them.
    pub(super) fn start(
        self,
        tasks: &mut Tasks,
        authenticator: &Arc<Authenticator>,
        policies: &Arc<Policies>,
    ) -> Service {
        let consumers = self.consumers();
        let Backend { store, followers, hub, watch_source, cache, .. } = self;
        let kept_alive = store.clone();
        tasks.spawn("keep-alive", async move { kept_alive.keep_alive().await });
        let checked = store.clone();
        tasks.spawn("preconditions", async move { checked.check_preconditions().await });
        let checked = hub.clone();
        tasks.spawn("check of watches", async move { checked.check_watches().await });
        tasks.spawn("feed", followers.run(consumers));
        let (authenticator, policies) = (authenticator.clone(), policies.clone());
        Service { store, cache, watch_source, hub, authenticator, policies }
    }

    /// Returns the consumers of the feed. The hub is the last: a read after an event must not return an older copy, and a
    /// catch-up after a rollback no page of the lost branch.
    fn consumers(&self) -> Vec<Arc<dyn Consumer>> {
        let cache = self.cache.clone().map(|cache| cache as Arc<dyn Consumer>);
        let watches = [self.watch_source.pages.clone() as Arc<dyn Consumer>, self.hub.clone()];
        cache.into_iter().chain(watches).collect()
    }
}

/// Opens the store and reads the ends of its logs.
async fn open_store(
    options: StoreOptions<'_>,
    config: &Config,
    metrics: &Arc<Metrics>,
    readiness: &channel::Sender<Health>,
) -> Result<(Arc<Store>, Vec<Position>), StartError> {
    let give_up = Instant::now() + config.start_timeout;
    let mut pause = FIRST_START_PAUSE;
    let mut cause = StartError::Connect("no reply within the start timeout".into());
    loop {
        let attempt = async {
            let store = Store::open(options, metrics.clone()).await?;
            let ends = store.ends(Instant::now() + config.limits.call_timeout).await?;
            Ok::<_, StartError>((Arc::new(store), ends))
        };
        // Without a timeout there is one whole attempt.
        let opened = match config.start_timeout {
            Duration::ZERO => attempt.await,
            _ => match timeout_at(give_up, attempt).await {
                Ok(opened) => opened,
                Err(_) => return Err(cause),
            },
        };
        cause = match opened {
            Err(error) if error.is_temporary() && Instant::now() + pause < give_up => error,
            opened => return opened,
        };
        let waiting = not_ready(&cause);
        if readiness.send_replace(waiting.clone()) != waiting {
            let (error, timeout) = (&cause, config.start_timeout);
            crate::observe::warning!(%error, ?timeout, "cannot open the store; retrying");
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_START_PAUSE);
    }
}
