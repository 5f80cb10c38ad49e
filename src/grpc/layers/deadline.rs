//! The deadline of a call, from its `grpc-timeout` header and the server's call timeout.

use std::time::Duration;

use http::HeaderMap;

/// Returns the time in which the response must be ready: the smaller one of `grpc-timeout` and the call timeout, minus a
/// margin.
///
/// The margin lets the response, which states whether anything was applied, arrive before the caller's own timer ends the
/// call.
pub(super) fn response_time(headers: &HeaderMap, call_timeout: Duration) -> Duration {
    const MAX_MARGIN: Duration = Duration::from_millis(50);
    let timeout = grpc_timeout(headers).unwrap_or(call_timeout).min(call_timeout);
    timeout - (timeout / 10).min(MAX_MARGIN)
}

/// Returns the value of the header `grpc-timeout`: up to eight digits and a unit. None: missing or malformed.
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(timeout: &str) -> HeaderMap {
        let value = http::HeaderValue::from_bytes(timeout.as_bytes()).unwrap();
        HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), value)])
    }

    #[test]
    fn grpc_timeout_is_parsed_as_the_protocol_defines() {
        assert_eq!(grpc_timeout(&headers("250m")), Some(Duration::from_millis(250)));
        assert_eq!(grpc_timeout(&headers("99999999H")), Some(Duration::from_secs(99_999_999 * 3600)));
        for malformed in ["", "5", "m", "-1S", "123456789S", "1x", "1\u{e9}"] {
            assert_eq!(grpc_timeout(&headers(malformed)), None, "{malformed}");
        }
    }

    #[test]
    fn response_time_is_below_the_timeout_and_the_call_timeout() {
        let call_timeout = Duration::from_secs(10);
        let rows = [("300m", 270), ("2S", 1_950), ("1H", 9_950), ("malformed", 9_950), ("0S", 0)];
        for (timeout, millis) in rows {
            assert_eq!(response_time(&headers(timeout), call_timeout), Duration::from_millis(millis), "{timeout}");
        }
        assert_eq!(response_time(&HeaderMap::new(), call_timeout), Duration::from_millis(9_950));
    }
}
