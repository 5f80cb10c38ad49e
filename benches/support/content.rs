//! Content of sessions: JSON typical of web shops and business applications.
//!
//! A generator seeded with the number of the session draws names, mail addresses, times, URLs, IP addresses, articles
//! and hex tokens. No two sessions are equal, and every run creates the same ones.

use std::{collections::BTreeMap, fmt::Write};

use sessiond_client::v1::AttributeValue;

use harness::client::json;

const FIRST: [&str; 12] =
    ["marta", "jonas", "aisha", "pedro", "yuki", "olga", "liam", "chiara", "noor", "sven", "ana", "tomasz"];
const LAST: [&str; 12] = [
    "lindqvist",
    "okafor",
    "garcia",
    "tanaka",
    "kowalski",
    "moreau",
    "fischer",
    "rossi",
    "haddad",
    "novak",
    "silva",
    "byrne",
];
const COMPANIES: [&str; 6] = ["Nordwind AB", "Acme Tools Ltd", "Casa Verde", "Helios Energy", "Blue Harbour", "Kappa"];
const SHELVES: [&str; 6] = ["garden/chairs", "kitchen/knives", "office/lamps", "toys/trains", "books/travel", "bath"];
const ARTICLES: [&str; 8] = [
    "folding-chair",
    "bread-knife",
    "desk-lamp",
    "night-train",
    "walking-in-wales",
    "towel",
    "watering-can",
    "oak-shelf",
];
const ROLES: [&str; 6] =
    ["orders:read", "orders:write", "invoices:read", "profile:write", "reports:export", "users:admin"];
const ZONES: [(&str, &str, &str); 5] = [
    ("sv-SE", "Europe/Stockholm", "SEK"),
    ("de-DE", "Europe/Berlin", "EUR"),
    ("en-GB", "Europe/London", "GBP"),
    ("ja-JP", "Asia/Tokyo", "JPY"),
    ("pt-BR", "America/Sao_Paulo", "BRL"),
];
const BROWSERS: [&str; 5] = ["Firefox 139.0", "Chrome 137.0.7151.68", "Safari 18.5", "Edge 137.0.3296", "Opera 119"];
const SYSTEMS: [&str; 4] = ["Windows 11", "macOS 15.5", "Android 15", "iOS 18.5"];

/// Kind of content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Nothing,
    /// Ten fields of about 100 bytes.
    Session,
    /// `Session` with a list of viewed pages: about 4 KiB.
    LongSession,
    /// One text of random letters as long as `Session`. LZ4 does not compress it.
    RandomLetters,
}

/// The top-level fields of one session's JSON object, in the order of the text.
pub struct Content(Vec<(&'static str, String)>);

impl Content {
    pub fn new(kind: Kind, number: u64) -> Self {
        match kind {
            Kind::Nothing => Content(Vec::new()),
            Kind::Session => Self::session(number),
            Kind::LongSession => Self::long_session(number),
            Kind::RandomLetters => Self::random_letters(number),
        }
    }

    fn session(number: u64) -> Self {
        let d = &mut Generator::new(number);
        Content(vec![
            ("user", d.user(number)),
            ("login", d.login()),
            ("csrf", format!(r#"{{"token":"{}","made":{}}}"#, d.hex(32), d.millis())),
            ("cart", d.list(1, 5, Generator::cart_item)),
            ("visited", d.list(1, 4, |d| format!(r#""{}""#, d.url()))),
            ("roles", d.list(2, 5, |d| format!(r#""{}""#, d.choose(&ROLES)))),
            ("preferences", d.preferences()),
            ("device", d.device()),
            ("flash", d.flash()),
            ("trace", format!(r#"{{"span":"{}","bucket":{},"beta":{}}}"#, d.hex(16), d.below(100), d.below(2) == 0)),
        ])
    }

    fn long_session(number: u64) -> Self {
        let mut content = Self::session(number);
        let d = &mut Generator::new(!number);
        content.0.push(("viewed", d.list(17, 27, Generator::viewed)));
        content
    }

    fn random_letters(number: u64) -> Self {
        let length = Self::session(number).to_json().len() - r#"{"data":""}"#.len();
        let d = &mut Generator::new(number);
        const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let text: String = (0..length).map(|_| char::from(LETTERS[d.below(64) as usize])).collect();
        Content(vec![("data", format!(r#""{text}""#))])
    }

    /// `Session` for one copy; for more, ten fields that are lists of so many values: about as many KiB.
    pub fn repeated(copies: usize, number: u64) -> Self {
        let first = number * copies as u64;
        if copies == 1 {
            return Self::session(first);
        }
        let sessions: Vec<_> = (first..first + copies as u64).map(|number| Self::session(number).0).collect();
        let list = |field: usize| {
            let values: Vec<_> = sessions.iter().map(|session| &session[field].1[..]).collect();
            (sessions[0][field].0, format!("[{}]", values.join(",")))
        };
        Content((0..sessions[0].len()).map(list).collect())
    }

    /// Returns the name and the value of a field.
    pub fn attribute(&self, index: usize) -> (String, AttributeValue) {
        let (name, value) = &self.0[index];
        ((*name).to_owned(), json(value))
    }

    /// Returns the content as one JSON object.
    pub fn to_json(&self) -> String {
        let fields: Vec<String> = self.0.iter().map(|(name, value)| format!(r#""{name}":{value}"#)).collect();
        format!("{{{}}}", fields.join(","))
    }

    /// Returns the JSON object as one attribute; no attribute if there is no content.
    pub fn as_one_attribute(&self) -> BTreeMap<String, AttributeValue> {
        let attribute = (!self.0.is_empty()).then(|| ("data".to_owned(), json(&self.to_json())));
        attribute.into_iter().collect()
    }

    /// Returns one attribute per field.
    pub fn as_attributes(&self) -> BTreeMap<String, AttributeValue> {
        self.0.iter().map(|(name, value)| ((*name).to_owned(), json(value))).collect()
    }
}

/// A random generator (SplitMix64) of numbers and values.
struct Generator(u64);

impl Generator {
    fn new(number: u64) -> Self {
        Generator(number.wrapping_mul(0xd134_2543_de82_ef95))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn choose(&mut self, choices: &[&'static str]) -> &'static str {
        choices[self.below(choices.len() as u64) as usize]
    }

    fn hex(&mut self, digits: usize) -> String {
        let mut text = String::new();
        while text.len() < digits {
            write!(text, "{:016x}", self.next()).unwrap();
        }
        text.truncate(digits);
        text
    }

    fn list(&mut self, min: u64, end: u64, mut item: impl FnMut(&mut Self) -> String) -> String {
        let count = min + self.below(end - min);
        let items: Vec<String> = (0..count).map(|_| item(self)).collect();
        format!("[{}]", items.join(","))
    }

    fn millis(&mut self) -> u64 {
        1_773_000_000_000 + self.below(10_000_000_000)
    }

    fn time(&mut self) -> String {
        let [day, hour, minute, second, ms] = [28, 24, 60, 60, 1000].map(|end| self.below(end));
        format!("2026-03-{:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z", day + 1)
    }

    fn url(&mut self) -> String {
        let (shelf, article, number) = (self.choose(&SHELVES), self.choose(&ARTICLES), self.below(90_000) + 10_000);
        format!("https://shop.example.com/{shelf}/{article}-{number}?page={}&sort=price", self.below(20) + 1)
    }

    fn user(&mut self, number: u64) -> String {
        let (first, last, company) = (self.choose(&FIRST), self.choose(&LAST), self.choose(&COMPANIES));
        format!(
            r#"{{"id":{number},"name":"{first} {last}","email":"{first}.{last}@example.org","company":"{company}"}}"#
        )
    }

    fn login(&mut self) -> String {
        let method = self.choose(&["password", "password+totp", "passkey", "oidc"]);
        format!(
            r#"{{"at":"{}","method":"{method}","ip":"203.0.{}.{}","failures":{}}}"#,
            self.time(),
            self.below(256),
            self.below(256),
            self.below(3)
        )
    }

    fn cart_item(&mut self) -> String {
        format!(
            r#"{{"sku":"{}-{}","name":"{}","quantity":{},"cents":{}}}"#,
            self.choose(&["GH", "KL", "OF", "TY"]),
            self.below(90_000) + 10_000,
            self.choose(&ARTICLES),
            self.below(5) + 1,
            self.below(20_000) + 99
        )
    }

    fn preferences(&mut self) -> String {
        let (locale, zone, currency) = ZONES[self.below(ZONES.len() as u64) as usize];
        let theme = self.choose(&["dark", "light", "system"]);
        format!(r#"{{"locale":"{locale}","timezone":"{zone}","currency":"{currency}","theme":"{theme}"}}"#)
    }

    fn device(&mut self) -> String {
        let (browser, system) = (self.choose(&BROWSERS), self.choose(&SYSTEMS));
        format!(r#"{{"id":"{}","browser":"{browser}","system":"{system}"}}"#, self.hex(32))
    }

    fn flash(&mut self) -> String {
        let (order, days) = (self.below(9_000_000), self.below(6) + 2);
        format!(r#"{{"kind":"info","text":"Your order {order} was received and is sent within {days} days."}}"#)
    }

    fn viewed(&mut self) -> String {
        format!(r#"{{"url":"{}","at":"{}","from":"{}"}}"#, self.url(), self.time(), self.hex(16))
    }
}
