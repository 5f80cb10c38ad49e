//! Random cases: a record that may be damaged, what the caller presents and has read before, and the rules of the policy.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use proptest::{collection::vec, option, prelude::*, sample::Index};

use super::record_text::{CHECK, CONTENT_CHECKSUMS, Fields, HEAD, LIVE, Superseded, TOMBSTONE, Token};
use crate::{
    session::{Attributes, Basic, Content, Credential, Policy, TokenReuse, Verifier},
    store::{codec, record::DEFAULT_TOUCH_INTERVAL_MS},
};

/// Time of Redis in ms.
pub(super) const NOW: u64 = 1_700_000_000_123;
/// Maximum time in ms by which the time of Redis is after its estimate.
const MAX_LAG: u64 = 2_000;

/// One case.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub fields: Fields,
    pub damage: Damage,
    pub presented: Presented,
    pub policy: Policy,
    pub known: Known,
    /// Time in ms by which the time of Redis is after its estimate.
    pub lag: u64,
}

/// Damage of the record.
#[derive(Clone, Debug)]
pub(super) enum Damage {
    None,
    /// The key does not exist.
    Absent,
    /// The key is a list.
    OtherType,
    /// The end is missing.
    Cut(Index),
    ByteTooMany,
    Format(u8),
    /// The check of the content head is higher by this number.
    Check(u32),
    /// One digit of the seal is another one.
    Seal(Index),
    /// The record was copied from another session.
    OtherName,
    /// A bit of head or tokens, without the checksums of the content.
    FrontBit(Index),
    /// A bit of the content, its checksums, or the request ids.
    RestBit(Index),
}

/// What the caller presents.
#[derive(Clone, Debug)]
pub(super) enum Presented {
    Id,
    Current,
    /// The current token with one bit of its verifier flipped.
    AlmostCurrent(Index),
    Superseded(Index),
    Unknown([u8; 16]),
    Zero,
}

/// The record that the caller of the script has read before.
#[derive(Clone, Debug)]
pub(super) enum Known {
    None,
    /// The present record.
    Present,
    /// A record with an older content, and the present life and tokens.
    OlderContent,
    /// A record with an older life, and the present content.
    OlderLife,
}

/// Value of the key of the session.
pub(super) enum Stored {
    None,
    List,
    Text(Vec<u8>),
}

impl Case {
    /// The credential that the caller presents.
    pub(super) fn credential(&self) -> Credential {
        let current = self.fields.current.as_ref().map_or([0; 16], |token| token.verifier);
        let superseded = &self.fields.superseded;
        Credential::Secret(Verifier::from_bytes(match &self.presented {
            Presented::Id => return Credential::Id,
            Presented::Current => current,
            Presented::AlmostCurrent(bit) => {
                let mut verifier = current;
                flip(&mut verifier, bit.index(128));
                verifier
            }
            Presented::Superseded(index) if !superseded.is_empty() => index.get(superseded).verifier,
            Presented::Unknown(verifier) => *verifier,
            Presented::Superseded(_) | Presented::Zero => [0; 16],
        }))
    }

    /// Whether the common read has to answer: the credential is accepted, and the deadline is not near.
    pub(super) fn is_common(&self) -> bool {
        let is_accepted = match self.presented {
            Presented::Id => true,
            Presented::Current => self.fields.current.is_some(),
            _ => false,
        };
        let is_far_from_end = self.fields.deadline().is_none_or(|deadline| deadline > NOW + MAX_LAG);
        self.has_verified_parts() && self.fields.kind == LIVE && is_accepted && is_far_from_end
    }

    /// Whether the key is not as a script wrote it.
    pub(super) fn is_damaged(&self) -> bool {
        !matches!(self.damage, Damage::None | Damage::Absent)
    }

    /// Whether there is a record, and head, tokens and length are as a script wrote them.
    pub(super) fn has_verified_parts(&self) -> bool {
        matches!(self.damage, Damage::None | Damage::RestBit(_))
    }

    /// Whether the session lives for a time that is too short for the common read.
    pub(super) fn is_near_end(&self) -> bool {
        self.fields.deadline().is_some_and(|deadline| (NOW + 1..=NOW + MAX_LAG).contains(&deadline))
    }

    /// Whether the script has to find out that head or tokens cannot be read.
    pub(super) fn is_unreadable(&self, stored: &Stored) -> bool {
        match (&self.damage, stored) {
            (Damage::Cut(_), Stored::Text(text)) => text.len() < self.fields.front_bytes(),
            (Damage::None | Damage::Absent | Damage::ByteTooMany | Damage::RestBit(_), _) => false,
            _ => true,
        }
    }

    /// The value of the key of the session with this name.
    pub(super) fn stored(&self, name: &[u8]) -> Stored {
        let mut text = self.fields.pack(name);
        let front_bytes = self.fields.front_bytes();
        match &self.damage {
            Damage::None => {}
            Damage::Absent => return Stored::None,
            Damage::OtherType => return Stored::List,
            Damage::Cut(length) => text.truncate(1 + length.index(text.len() - 1)),
            Damage::ByteTooMany => text.push(0),
            Damage::Format(format) => text[0] = *format,
            Damage::Check(more) => {
                let check: &mut [u8; 4] = (&mut text[CHECK]).try_into().unwrap();
                *check = u32::from_be_bytes(*check).wrapping_add(*more).to_be_bytes();
            }
            Damage::Seal(digit) => {
                let at = HEAD - 8 + digit.index(8);
                text[at] = if text[at] == b'0' { b'1' } else { b'0' };
            }
            Damage::OtherName => text = self.fields.pack(&[name, b"a"].concat()),
            Damage::FrontBit(bit) => {
                let bit = bit.index((front_bytes - CONTENT_CHECKSUMS.len()) * 8);
                flip(
                    &mut text,
                    if bit < CONTENT_CHECKSUMS.start * 8 { bit } else { bit + CONTENT_CHECKSUMS.len() * 8 },
                );
            }
            Damage::RestBit(bit) => {
                let bit = bit.index((CONTENT_CHECKSUMS.len() + text.len() - front_bytes) * 8);
                let is_checksum = bit < CONTENT_CHECKSUMS.len() * 8;
                let from = if is_checksum { CONTENT_CHECKSUMS.start } else { front_bytes - CONTENT_CHECKSUMS.len() };
                flip(&mut text, from * 8 + bit);
            }
        }
        Stored::Text(text)
    }

    /// The record that the caller has read before, if it is an older one. It is not damaged, nor is the present one.
    pub(super) fn older(&self, name: &[u8]) -> Option<Vec<u8>> {
        let mut fields = self.fields.clone();
        match (&self.known, &self.damage) {
            (Known::OlderContent, Damage::None) => {
                fields.content_position[0] ^= 1;
                (fields.basic, fields.attributes) = (Basic::of(&content(2, 0)).bytes().clone(), Bytes::new());
            }
            (Known::OlderLife, Damage::None) => fields.accessed ^= 1,
            _ => return None,
        }
        Some(fields.pack(name))
    }
}

fn flip(text: &mut [u8], bit: usize) {
    text[bit / 8] ^= 1 << (bit % 8);
}

/// A random case.
pub(super) fn case() -> impl Strategy<Value = Case> {
    let known = prop_oneof![
        1 => Just(Known::None),
        3 => Just(Known::Present),
        1 => Just(Known::OlderContent),
        1 => Just(Known::OlderLife),
    ];
    let times = (age(), age(), idle(), deadline(), deadline());
    let record = (times, current(), vec(superseded(), 0..=16), numbers(), contents(), 0..20u8);
    let lag = prop_oneof![Just(0), Just(MAX_LAG), 0..=MAX_LAG];
    (record, policy(), presented(), damage(), known, lag).prop_map(|(record, policy, presented, damage, known, lag)| {
        let (times, current, superseded, numbers, contents, kind) = record;
        let mut fields = live(times, current, numbers, &policy);
        (fields.basic, fields.attributes, fields.requests) = contents;
        fields.superseded = superseded;
        if kind == 0 {
            fields = tombstone(fields);
        }
        Case { fields, damage, presented, policy, known, lag }
    })
}

/// Age in ms of a time: an offset from a limit of the rules, or from 0. A negative age is ahead of the clock.
type Age = (Option<Index>, i64);

fn age() -> impl Strategy<Value = Age> {
    prop_oneof![
        4 => (any::<Index>().prop_map(Some), -2..=2i64),
        2 => (Just(None), 0..100_000_000i64),
        1 => (Just(None), -10_000..=0i64),
    ]
}

fn time_of((limit, offset): Age, limits: &[u64]) -> u64 {
    let limit = limit.map_or(0, |index| *index.get(limits));
    NOW.saturating_sub(limit).saturating_add_signed(-offset)
}

/// A deadline: none, far, near, past, or at one of the limits.
fn deadline() -> impl Strategy<Value = u64> {
    prop_oneof![
        9 => Just(0),
        9 => NOW + MAX_LAG..NOW + 10_000_000_000,
        1 => NOW..=NOW + MAX_LAG,
        1 => NOW - 1_000_000..=NOW,
        1 => NOW - 1..=NOW + 1,
        1 => NOW + MAX_LAG - 1..=NOW + MAX_LAG + 2,
    ]
}

fn idle() -> impl Strategy<Value = u64> {
    prop_oneof![2 => Just(0), 2 => 1..200u64, 2 => 1_000..1_000_000u64, 1 => Just(400 * 24 * 3_600_000)]
}

fn duration() -> impl Strategy<Value = Duration> {
    prop_oneof![
        1 => Just(Duration::ZERO),
        1 => (1..1_000u64).prop_map(Duration::from_micros),
        3 => (1_000..200_000u64).prop_map(Duration::from_micros),
        3 => (1..100_000u64).prop_map(Duration::from_secs),
        1 => Just(Duration::from_millis(u64::MAX)),
    ]
}

fn policy() -> impl Strategy<Value = Policy> {
    let renewal_timeout = duration().prop_filter("a timeout is above zero", |timeout| !timeout.is_zero());
    let rules = (option::of(duration()), option::of(renewal_timeout), duration(), any::<bool>());
    rules.prop_map(|(touch_interval, renewal_timeout, rotation_grace, is_reported)| Policy {
        touch_interval,
        renewal_timeout,
        rotation_grace,
        token_reuse: if is_reported { TokenReuse::Report } else { TokenReuse::End },
        ..Policy::default()
    })
}

fn presented() -> impl Strategy<Value = Presented> {
    prop_oneof![
        6 => Just(Presented::Id),
        12 => Just(Presented::Current),
        2 => any::<Index>().prop_map(Presented::AlmostCurrent),
        2 => any::<Index>().prop_map(Presented::Superseded),
        1 => any::<[u8; 16]>().prop_map(Presented::Unknown),
        1 => Just(Presented::Zero),
    ]
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        90 => Just(Damage::None),
        1 => Just(Damage::Absent),
        1 => Just(Damage::OtherType),
        2 => any::<Index>().prop_map(Damage::Cut),
        1 => Just(Damage::ByteTooMany),
        1 => (0..0xFAu8).prop_map(Damage::Format),
        1 => (1..=u32::MAX).prop_map(Damage::Check),
        1 => any::<Index>().prop_map(Damage::Seal),
        1 => Just(Damage::OtherName),
        4 => any::<Index>().prop_map(Damage::FrontBit),
        4 => any::<Index>().prop_map(Damage::RestBit),
    ]
}

/// The current token without its time: verifier, whether it was used, and salt.
fn current() -> impl Strategy<Value = ([u8; 16], bool, Option<[u8; 32]>)> {
    let salt = prop_oneof![2 => Just(None), 1 => Just(Some([0; 32])), 1 => any::<[u8; 32]>().prop_map(Some)];
    (any::<[u8; 16]>(), prop::bool::weighted(0.6), salt)
}

fn superseded() -> impl Strategy<Value = Superseded> {
    (any::<[u8; 16]>(), 0..1_000_000u64, deadline(), 0..8u8).prop_map(|(verifier, age, valid_until, flags)| {
        Superseded { verifier, superseded_at: NOW - age, valid_until, flags }
    })
}

/// Numbers that no rule of a read compares: positions below 2^53, turn, generation, `left`.
fn numbers() -> impl Strategy<Value = ([u64; 5], bool, u32)> {
    (prop::array::uniform5(1..1u64 << 53), any::<bool>(), 1..=u32::MAX)
}

/// Basic, stored attributes and request ids: none, small, or above the size up to which scripts copy them.
fn contents() -> impl Strategy<Value = (Bytes, Bytes, Bytes)> {
    let requests = prop_oneof![2 => Just(0), 1 => 1..64usize, 1 => Just(64)];
    (0..3u8, 0..4u8, requests).prop_map(|(basic, attributes, requests)| {
        let content = content(basic, attributes);
        let attributes = codec::encode(Attributes::of(&content.attributes).bytes());
        (Basic::of(&content).bytes().clone(), attributes.into(), mixed_bytes(requests * 31))
    })
}

fn content(basic: u8, attributes: u8) -> Content {
    let attribute = match attributes {
        0 => None,
        1 => Some(Bytes::from_static(b"small")),
        2 => Some(b"compressible ".repeat(400).into()),
        _ => Some(mixed_bytes(3_000)),
    };
    Content {
        subject: ["", "alice", "bob"][usize::from(basic)].into(),
        labels: (0..basic).map(|label| (format!("label-{label}"), "value".into())).collect(),
        client: (basic == 2).then(|| mixed_bytes(3_000)),
        attributes: attribute.map(|value| ("name".to_owned(), value)).into_iter().collect::<BTreeMap<_, _>>(),
        ..Content::default()
    }
}

/// Bytes that cannot be compressed.
fn mixed_bytes(length: usize) -> Bytes {
    (0..length as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8 ^ (at >> 3) as u8).collect()
}

fn live(
    (accessed, since, idle, idle_until, absolute): (Age, Age, u64, u64, u64),
    (verifier, is_used, salt): ([u8; 16], bool, Option<[u8; 32]>),
    ([revision, nonce, content_revision, content_nonce, turn], has_turn, generation): ([u64; 5], bool, u32),
    policy: &Policy,
) -> Fields {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap();
    let touch_interval = policy.touch_interval.map_or(DEFAULT_TOUCH_INTERVAL_MS, millis);
    let renewal = policy.renewal_timeout.map_or(0, millis);
    Fields {
        kind: LIVE,
        revision,
        nonce,
        content_position: [content_revision, content_nonce],
        turn: if has_turn { [turn, NOW] } else { [0; 2] },
        created: NOW - 100_000_000,
        accessed: time_of(accessed, &[touch_interval, idle.div_ceil(20)]),
        idle,
        idle_until,
        absolute,
        generation,
        left: revision / 2,
        current: Some(Token { verifier, since: time_of(since, &[renewal]), used: is_used.into(), salt }),
        ..Fields::default()
    }
}

fn tombstone(live: Fields) -> Fields {
    let Fields { revision, nonce, current, superseded, requests, .. } = live;
    let has_tokens = revision % 2 == 0;
    let (current, superseded) = if has_tokens { (current, superseded) } else { (None, Vec::new()) };
    Fields { kind: TOMBSTONE, revision, nonce, cause: 2, current, superseded, requests, ..Fields::default() }
}
