//! The common read answers like the scripts, for any record: a property test with a real Redis.
//!
//! The scripts read the time from a list instead of the clock, so that a case always has the same result, also if its times
//! are exactly at a limit.

mod case;
mod record_text;

use std::{cell::RefCell, collections::BTreeMap, time::Duration};

use harness::Redis;
use proptest::{prelude::*, test_runner::TestRunner};

use self::case::{Case, Known, NOW, Stored, case};
use super::*;
use crate::{redis::Script, session::Session};

/// Number of random cases, which take about 5 s.
const CASES: u32 = 3_000;
/// Minimum number of cases of each kind that the common read answers.
const MIN_CASES: u32 = 5;
/// Time of Redis in us.
const NOW_US: u64 = NOW * 1_000 + 999;

/// What the common read leaves to the script.
#[derive(Clone, Copy, Debug)]
struct Writes {
    is_first_use: bool,
    touch_is_due: bool,
}

/// A session and the state of the presented token, or what the caller gets instead.
type Answer = Result<(Session, TokenState), String>;

/// A store whose scripts run at [`NOW_US`], and the session of all cases.
struct Rig {
    store: Store,
    node: Arc<Node>,
    name: SessionRef,
    keys: SessionKeys,
    read: &'static Script,
    read_only: &'static Script,
}

impl Rig {
    async fn open(redis: &Redis) -> Self {
        let store = Store::of_one_partition(redis).await;
        let name = SessionRef { namespace: "web".parse().unwrap(), id: "a".repeat(26).parse().unwrap() };
        let (node, keys) = (store.node(Partition(0)), store.keys.session_keys(&name));
        let (read, read_only) = (at_fixed_time(&scripts::READ), at_fixed_time(&scripts::READ_ONLY));
        let rig = Rig { store, node, name, keys, read, read_only };
        let [seconds, micros] = [NOW_US / 1_000_000, NOW_US % 1_000_000].map(|part| part.to_string());
        rig.command("RPUSH", &["clock".into(), seconds.into(), micros.into()]).await;
        rig
    }

    async fn command(&self, name: &'static str, args: &[Bytes]) {
        self.node.command(Priority::Interactive, name, args, deadline()).await.unwrap();
    }

    async fn put(&self, stored: &Stored) {
        let key = self.keys.session.clone();
        match stored {
            Stored::Text(text) => return self.command("SET", &[key, text.clone().into()]).await,
            Stored::None | Stored::List => self.command("DEL", std::slice::from_ref(&key)).await,
        }
        if let Stored::List = stored {
            self.command("RPUSH", &[key, "element".into()]).await;
        }
    }

    /// Number of writes that Redis has executed.
    async fn writes(&self) -> u64 {
        let info = self.node.info("persistence", deadline()).await.unwrap();
        let writes = info.lines().find_map(|line| line.strip_prefix("rdb_changes_since_last_save:"));
        writes.unwrap().parse().unwrap()
    }

    /// The answer of the script to a caller that has read `record` before.
    async fn run(&self, case: &Case, record: Option<&Record>, effects: Effects, view: View, touch: Touch) -> Answer {
        let get = Get { credential: case.credential(), view, touch };
        let (name, keys, policy, on_migration) = (&self.name, &self.keys, &case.policy, OnMigration::Wait);
        let read = ReadCall { name, keys, get, policy, record, on_migration, deadline: deadline() };
        let call = self.store.script_call(&read, effects);
        let reply = match effects {
            Effects::Written => self.store.write(self.read, WriteConcern::Primary, &call, deadline()).await,
            Effects::None => self.store.read(self.read_only, &call, deadline()).await,
        };
        let result = ReadReply::decode(reply.unwrap()).and_then(|reply| self.store.read_result(&read, reply));
        let ReadResult { found, validity, needs_write } = match result {
            Ok(result) => result,
            Err(error) => return Err(error.to_string()),
        };
        if let Found::Live(Live {
            token_state: TokenState::NotPresented | TokenState::Current | TokenState::RotationDue,
            ..
        }) = found
        {
            assert!(validity.until.is_none() && !validity.is_over && !needs_write, "no limit, as in the common read");
        }
        answer(Ok(found))
    }

    /// The answer of the common read that accepts this record.
    fn found(&self, record: &Record, view: View, token_state: TokenState) -> Answer {
        answer(self.store.found(&self.name, &self.keys, record.clone(), view, token_state))
    }

    /// Checks one case. Returns the state of the token and what the script has to write if the common read answers the case.
    async fn check(&self, case: &Case) -> Result<Option<(TokenState, Writes)>, TestCaseError> {
        let stored = case.stored(&self.keys.name);
        self.put(&stored).await;
        let record = self.store.read_record(&self.keys, deadline()).await.unwrap();
        let record = record.as_ref();
        let decide = |record: Option<&Record>, now_us| match record {
            Some(record) => common_read(&record.front, case.credential(), &case.policy, now_us),
            None => CommonRead::NeedsScript,
        };
        let older = case.older(&self.keys.name).map(|text| Record::parse(&self.keys.name, &text.into(), Extent::Whole));
        let older = older.transpose().unwrap();
        let known = match case.known {
            Known::None => None,
            Known::Present => record,
            Known::OlderContent | Known::OlderLife => older.as_ref(),
        };
        let script = async |effects, view, touch| self.run(case, known, effects, view, touch).await;

        let by_script = script(Effects::None, View::Full, Touch::No).await;
        let is_corrupt = by_script.as_ref().is_err_and(|why| why.contains("is corrupt"));
        if case.is_unreadable(&stored) && matches!(case.credential(), Credential::Id) {
            prop_assert!(is_corrupt, "a record that cannot be read: {:?}", by_script);
        }
        prop_assert!(!is_corrupt || case.is_damaged(), "a record without damage: {:?}", by_script);
        prop_assert!(record.is_none() || case.has_verified_parts(), "head, tokens and length are verified");
        prop_assert_eq!(decide(record, None), CommonRead::NeedsScript);
        if let CommonRead::Accepted { token_state, .. } = decide(record, Some(NOW_US - case.lag * 1_000)) {
            let accepted = self.found(record.unwrap(), View::Full, token_state);
            let session = |answer: &Answer| answer.clone().map(|(session, _)| session);
            prop_assert_eq!(session(&by_script), session(&accepted), "with a late clock");
        }
        let beginning = self.store.read_beginning(None, &self.keys, deadline()).await.unwrap();
        let beginning = beginning.as_ref();
        if let CommonRead::Accepted { token_state, .. } = decide(beginning, Some(NOW_US)) {
            let accepted = self.found(beginning.unwrap(), View::Basic, token_state);
            prop_assert_eq!(script(Effects::None, View::Basic, Touch::No).await, accepted, "from the beginning");
        }
        match decide(record, Some(NOW_US)) {
            CommonRead::Accepted { token_state, is_first_use, touch_is_due } => {
                let writes = Writes { is_first_use, touch_is_due };
                self.check_accepted(record.unwrap(), token_state, writes, script).await?;
                Ok(Some((token_state, writes)))
            }
            CommonRead::NeedsScript => {
                prop_assert!(!case.is_common(), "the common read answers");
                self.check_not_accepted(case, record, script).await?;
                Ok(None)
            }
        }
    }

    /// Checks that the common read has a reason not to answer: the script refuses the case, the token is superseded, the
    /// deadline is near, or the record cannot be read.
    async fn check_not_accepted(
        &self,
        case: &Case,
        record: Option<&Record>,
        script: impl AsyncFn(Effects, View, Touch) -> Answer,
    ) -> Result<(), TestCaseError> {
        let by_script = script(Effects::Written, View::Full, Touch::No).await;
        let is_refused = !matches!(by_script, Ok((_, state)) if state != TokenState::Superseded);
        let has_reason = record.is_none() || is_refused || case.is_near_end();
        prop_assert!(has_reason, "the script returns {:?}", by_script);
        Ok(())
    }

    /// Checks that the script gives the answer of the common read, whether it may write or not, and writes the first use of the
    /// token, the touch if it is due, and nothing else.
    async fn check_accepted(
        &self,
        record: &Record,
        token_state: TokenState,
        writes: Writes,
        script: impl AsyncFn(Effects, View, Touch) -> Answer,
    ) -> Result<(), TestCaseError> {
        let Writes { is_first_use, touch_is_due } = writes;
        let before = self.writes().await;
        for (effects, written) in [(Effects::None, 0), (Effects::Written, u64::from(is_first_use))] {
            for view in [View::Basic, View::Full] {
                let accepted = self.found(record, view, token_state);
                prop_assert_eq!(&script(effects, view, Touch::No).await, &accepted);
            }
            prop_assert_eq!(self.writes().await, before + written, "a read without a touch writes the first use");
        }
        let before = before + u64::from(is_first_use);
        let mut expected = self.found(record, View::Full, token_state);
        if let (Ok((session, _)), true) = (&mut expected, touch_is_due) {
            touch(session);
        }
        prop_assert_eq!(&script(Effects::Written, View::Full, Touch::Yes).await, &expected);
        prop_assert_eq!(self.writes().await > before, touch_is_due, "the touch is written if it is due");
        let stored = self.store.read_record(&self.keys, deadline()).await.unwrap();
        prop_assert_eq!(self.found(&stored.unwrap(), View::Full, token_state), expected, "after the touch");
        Ok(())
    }
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

/// A script that reads the time from a list.
fn at_fixed_time(script: &Script) -> &'static Script {
    const CLOCK: &str = "redis.call('TIME')";
    let source = script.source();
    assert_eq!(source.matches(CLOCK).count(), 1, "{}: the gate reads the clock", script.name);
    let (_flags, body) = source.split_once('\n').unwrap();
    let body = body.replace(CLOCK, "redis.call('LRANGE', 'clock', 0, 1)").leak();
    Box::leak(Box::new(Script::new(script.name, script.flags, script.keys, body, &[])))
}

fn answer(found: Result<Found, Error>) -> Answer {
    match found {
        Ok(Found::Live(live)) => Ok((live.session, live.token_state)),
        Ok(other) => Err(format!("{other:?}")),
        Err(error) => Err(error.to_string()),
    }
}

fn touch(session: &mut Session) {
    session.accessed = Millis(NOW);
    if let Some(idle) = session.idle_timeout {
        session.idle_until = session.idle_until.max(Some(Millis(NOW + idle)));
    }
}

#[test]
fn common_read_any_record_answers_like_the_script() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let redis = Redis::start();
    let rig = runtime.block_on(Rig::open(&redis));
    let config = ProptestConfig {
        cases: CASES,
        failure_persistence: None,
        max_shrink_iters: 1_000,
        ..ProptestConfig::default()
    };
    let answered = RefCell::new(BTreeMap::<String, u32>::new());
    let checked = TestRunner::new(config).run(&case(), |case| {
        if let Some(kind) = runtime.block_on(rig.check(&case))? {
            *answered.borrow_mut().entry(format!("{kind:?}")).or_default() += 1;
        }
        Ok(())
    });
    if let Err(error) = checked {
        panic!("{error}");
    }
    let answered = answered.into_inner();
    assert!(answered.len() == 10 && answered.values().all(|count| *count >= MIN_CASES), "too few cases: {answered:?}");
    runtime.block_on(rig.store.close());
}
