//! Compares the due sets with the sessions, in pages: finds sessions whose key is missing, and schedules live sessions that
//! are missing in their due set.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::sleep;

use super::deadline;
use crate::{
    feed::MissingKeys,
    observe::Metrics,
    session::{Namespace, Policies, SessionId, SessionRef, Subject},
    store::{
        Error, Expired, ListPosition, PER_SCRIPT, Partition, ScanPosition, ScanScope, Store, Survey, SurveyedState,
    },
};

/// Pause after each page, so that a check takes a small part of the time of Redis.
pub(super) const PAGE_PAUSE: Duration = Duration::from_millis(10);

/// Compares due sets and sessions.
#[derive(Clone)]
pub struct DueSets {
    /// Store that holds the due sets.
    pub store: Arc<Store>,
    /// Sessions whose keys are missing: the comparison adds to them.
    pub missing_keys: Arc<MissingKeys>,
    /// Policies of the sessions.
    pub policies: Arc<Policies>,
    /// Metrics that count ended sessions and repairs.
    pub metrics: Arc<Metrics>,
}

impl DueSets {
    /// Returns an iteration over the sessions in the due sets of a partition.
    pub async fn pages(&self, partition: Partition) -> Result<DuePages<'_>, Error> {
        let namespaces = self.store.namespaces(partition, deadline()).await?;
        Ok(DuePages { due_sets: self, partition, namespaces, next: Some(start_of(partition)), ids: Vec::new() })
    }

    /// Notes the sessions whose key is missing, and returns the live ones that have a subject.
    fn note_missing(&self, partition: Partition, namespace: &Namespace, survey: Survey) -> Vec<(Subject, SessionId)> {
        let mut live = Vec::new();
        for session in survey.sessions {
            match session.state {
                SurveyedState::Missing => {
                    let name = SessionRef { namespace: namespace.clone(), id: session.id };
                    self.missing_keys.add(partition, name);
                }
                SurveyedState::Live if !session.subject.is_empty() => {
                    live.push((Subject { namespace: namespace.clone(), name: session.subject }, session.id));
                }
                SurveyedState::Live | SurveyedState::Overdue | SurveyedState::Unscheduled | SurveyedState::Other => {}
            }
        }
        live
    }

    /// Schedules all live sessions of a partition that its due sets lack, and restores its set of namespaces.
    pub async fn restore(&self, partition: Partition) -> Result<(), Error> {
        let mut next = Some(ScanPosition::default());
        while let Some(from) = next {
            let page = self.store.scan(ScanScope::Sessions(partition), from, deadline()).await?;
            self.schedule(page.sessions).await?;
            next = page.next;
            sleep(PAGE_PAUSE).await;
        }
        Ok(())
    }

    /// Schedules those of these sessions that are live and missing in their due set, and restores the sets of namespaces that
    /// lack theirs. Returns the scheduled sessions that have a subject.
    pub async fn schedule(&self, sessions: Vec<SessionRef>) -> Result<Vec<(Subject, SessionId)>, Error> {
        let mut groups: BTreeMap<(Partition, Namespace), Vec<SessionId>> = BTreeMap::new();
        for SessionRef { namespace, id } in sessions {
            groups.entry((self.store.partition_of(&id), namespace)).or_default().push(id);
        }
        let (mut scheduled, mut with_subject) = (0_u64, Vec::new());
        for ((partition, namespace), ids) in groups {
            for ids in ids.chunks(PER_SCRIPT) {
                let survey = self.store.survey(partition, &namespace, ids, deadline()).await?;
                let mut lacks_namespace = !survey.has_namespace;
                for session in survey.sessions {
                    match session.state {
                        SurveyedState::Unscheduled => scheduled += 1,
                        SurveyedState::Live | SurveyedState::Overdue if lacks_namespace => {}
                        _ => continue,
                    }
                    let name = SessionRef { namespace: namespace.clone(), id: session.id };
                    match self.store.expire(&name, self.policies.of_stored(&namespace), deadline()).await? {
                        Expired::Now => drop(self.metrics.sessions_expired.inc()),
                        // The script has scheduled the session and restored the namespace.
                        Expired::NotDue => lacks_namespace = false,
                        Expired::Before => {}
                    }
                    if session.state == SurveyedState::Unscheduled && !session.subject.is_empty() {
                        with_subject
                            .push((Subject { namespace: namespace.clone(), name: session.subject }, session.id));
                    }
                }
            }
        }
        if scheduled > 0 {
            crate::observe::warning!(
                sessions = scheduled,
                "live sessions were missing in the due set; scheduled again"
            );
        }
        Ok(with_subject)
    }
}

/// Iteration over the sessions in the due sets of a partition.
pub struct DuePages<'a> {
    due_sets: &'a DueSets,
    partition: Partition,
    /// Namespaces that are left; the last one is the current one.
    namespaces: Vec<Namespace>,
    /// Position of the next page of the current namespace. None: the end.
    next: Option<ListPosition>,
    /// Ids of the current namespace that were read, but not checked.
    ids: Vec<SessionId>,
}

impl DuePages<'_> {
    /// Checks the next sessions: notes those whose key is missing, and returns the live ones that have a subject. None: the
    /// end. After an error the iteration continues.
    pub async fn next(&mut self) -> Option<Result<Vec<(Subject, SessionId)>, Error>> {
        loop {
            let namespace = self.namespaces.last()?;
            if !self.ids.is_empty() {
                sleep(PAGE_PAUSE).await;
                let ids = self.ids.split_off(self.ids.len().saturating_sub(PER_SCRIPT));
                let survey = self.due_sets.store.survey(self.partition, namespace, &ids, deadline()).await;
                return Some(survey.map(|survey| self.due_sets.note_missing(self.partition, namespace, survey)));
            }
            match self.next.take().filter(|next| next.partition() == self.partition) {
                Some(from) => match self.due_sets.store.list(None, namespace, from, PER_SCRIPT, deadline()).await {
                    Ok(page) => (self.ids, self.next) = page,
                    Err(error) => return Some(Err(error)),
                },
                None => {
                    self.namespaces.pop();
                    self.next = Some(start_of(self.partition));
                }
            }
        }
    }
}

fn start_of(partition: Partition) -> ListPosition {
    ListPosition::After(partition, None)
}
