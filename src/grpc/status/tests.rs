//! Reasons and sizes of statuses.

use super::*;

/// Maximum size of the trailers of a status, names included: 4 KiB minus 512 bytes for the other headers.
const MAX_TRAILER_BYTES: usize = 3_584;

fn reason(status: &Status) -> String {
    status.get_details_error_info().unwrap().reason
}

/// Returns the size of the trailers of a status, names included.
fn trailer_bytes(status: &Status) -> usize {
    let mut trailers = http::HeaderMap::new();
    status.add_header(&mut trailers).unwrap();
    trailers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

#[test]
fn unexpected_reply_is_unknown_for_a_write_only() {
    let read = from_store(&store::Error::UnexpectedRead("no bytes".into()));
    assert_eq!((read.code(), &reason(&read)[..]), (Code::Unavailable, "STORE_UNAVAILABLE"));
    assert!(read.message().ends_with("; nothing was applied"), "{read:?}");
    assert!(read.get_details_retry_info().is_some());
    let write = from_store(&store::Error::Unexpected("no bytes".into()));
    assert_eq!((write.code(), &reason(&write)[..]), (Code::Unknown, "OUTCOME_UNKNOWN"));
}

/// Texts of every width in the trailers, of this many characters.
fn texts(length: usize) -> impl Iterator<Item = String> {
    ["a", " ", "%", "{", "\u{e9}", "\u{20ac}", "\u{1f600}"].into_iter().map(move |part| part.repeat(length))
}

#[test]
fn every_status_has_a_reason_and_small_trailers() {
    let mut all = vec![
        message_too_large("request", usize::MAX),
        metadata_too_large(usize::MAX),
        compression_unsupported(),
        method_unknown(),
        panicked(),
        responses_unread(),
        request_timeout(),
        overloaded(),
        draining(),
        superseded(),
    ];
    let ids: Vec<_> = (0..1_000_u128).map(|number| SessionId::from_bytes(number.to_be_bytes())).collect();
    all.extend([1, 64, 65, 1_000].map(|count| from_error(Error::IdsNotFound(ids[..count].to_vec()))));
    for length in [0, 1, 10, 100, 500, 1_000, 10_000] {
        for text in texts(length) {
            use store::Error as E;
            let errors = [
                E::Unavailable(text.clone()),
                E::Refused(text.clone()),
                E::UnexpectedRead(text.clone()),
                E::OutcomeUnknown(text.clone()),
                E::Unexpected(text.clone()),
            ];
            all.extend(errors.iter().map(from_store));
            all.push(malformed_message(&text));
            for count in [1, 2, 20, 1_000] {
                let violation = || Violation { field: text.clone(), reason: text.clone() };
                all.push(fields_invalid((0..count).map(|_| violation()).collect()));
                let short_field = || Violation { field: "key".into(), reason: text.clone() };
                all.push(fields_invalid((0..count).map(|_| short_field()).collect()));
                let short_reason = || Violation { field: text.clone(), reason: "must not be empty".into() };
                all.push(fields_invalid((0..count).map(|_| short_reason()).collect()));
            }
        }
    }
    for status in all {
        assert!(!reason(&status).is_empty());
        let bytes = trailer_bytes(&status);
        assert!(bytes < MAX_TRAILER_BYTES, "{bytes} bytes: {status:?}");
    }
}

#[test]
fn status_of_many_violations_is_truncated() {
    let violation = |number: usize| Violation { field: format!("field[{number}]"), reason: "\u{e9}".repeat(50) };
    let status = fields_invalid((0..1_000).map(violation).collect());
    let fields = status.get_details_bad_request().unwrap().field_violations;
    assert!((2..100).contains(&fields.len()), "{} fields", fields.len());
    assert!(status.message().ends_with("; more fields are invalid"), "{status:?}");
    let one = Violation { field: "field".into(), reason: "x".repeat(10_000) };
    let status = fields_invalid(vec![one]);
    let fields = status.get_details_bad_request().unwrap().field_violations;
    assert!(fields.len() == 1 && fields[0].description.ends_with("xxx..."), "{fields:?}");
}
