//! Plain technical English: words and phrases that have a standard term, in every tracked text file.

use super::{report, tracked_files};

/// Words and phrases, and what to write instead. A phrase matches across line breaks, and also within identifiers:
/// `wasTold` and `was_told` contain `told`.
const RULED_OUT: &[(&[&str], &str)] = &[
    (&["tell", "tells", "told", "telling"], "send, deliver, return, report, log"),
    (&["hear", "hears", "heard", "hearing"], "receive, read"),
    (&["whoever", "whomever", "whom", "whosever"], "the caller, the watcher, the client"),
    (&["somebody", "nobody", "everybody"], "a caller, no watcher, every client"),
    (&["stranger", "strangers"], "a caller with a wrong token"),
    (&["behind our back", "behind our backs"], "out of band, directly in Redis"),
    (&["beside", "besides"], "next to, with, in addition to"),
    (&["amid", "meanwhile"], "while, in the meantime"),
    (&["anew"], "again"),
    (&["for ever"], "until shutdown; never returns"),
    (&["takes leave", "take leave", "leave taking"], "closes, evicts"),
    (&["last word", "last words"], "final response"),
    (&["is to be", "are to be", "was to be"], "must, will, can"),
    (&["stand for", "stands for"], "represents"),
    (&["but for"], "except"),
    (&["as far as"], "up to, if"),
    (&["vanish", "vanishes", "vanished", "vanishing"], "missing key, out-of-band deletion"),
    (&["rewind", "rewinds", "rewinding", "rewound"], "rollback, lost history"),
    (&["bury", "buries", "buried"], "tombstone"),
    (&["lookout", "lookouts"], "topology probe"),
    (&["audited"], "reconciled"),
    (&["auditor", "tidier", "sweeper"], "index reconciler, expiry worker"),
];

/// Generated text, the licence, and the list above.
fn is_exempt(path: &str) -> bool {
    let generated =
        ["_pb.ts", ".pb.go", "_pb2.py", "_pb2.pyi", "_pb2_grpc.py", ".binpb", "Cargo.lock", "package-lock.json"];
    generated.iter().any(|end| path.ends_with(end))
        || path.contains("/generated/")
        || ["LICENSE", "tests/tidy/words.rs"].contains(&path)
}

/// One word of a text, in lower case.
struct Word {
    text: String,
    /// Line that it is on, from 1.
    line: usize,
    /// Whether only white space, underscores or comment markers separate it from the word before it.
    continues: bool,
}

/// Words of the text. Identifiers are split at underscores and at capital letters.
fn words(text: &str) -> Vec<Word> {
    let mut words: Vec<Word> = Vec::new();
    let (mut is_in_word, mut continues) = (false, false);
    for (index, line) in text.lines().enumerate() {
        let mut previous_is_lower = false;
        for letter in line.chars() {
            if !letter.is_alphabetic() {
                continues = (continues || is_in_word) && (letter.is_whitespace() || "_/!#*-".contains(letter));
                is_in_word = false;
            } else if is_in_word && !(letter.is_uppercase() && previous_is_lower) {
                words.last_mut().expect("a word has begun").text.extend(letter.to_lowercase());
            } else {
                let continues = continues || is_in_word;
                words.push(Word { text: letter.to_lowercase().collect(), line: index + 1, continues });
                is_in_word = true;
            }
            previous_is_lower = letter.is_lowercase();
        }
        continues |= is_in_word;
        is_in_word = false;
    }
    words
}

/// Ruled-out words and phrases of the text: line, match, replacement.
fn ruled_out(text: &str) -> Vec<(usize, &'static str, &'static str)> {
    let words = words(text);
    let mut found = Vec::new();
    for (matches, replacement) in RULED_OUT {
        for phrase in *matches {
            let parts: Vec<&str> = phrase.split(' ').collect();
            let hits = words.windows(parts.len()).filter(|window| {
                window.iter().map(|word| &word.text[..]).eq(parts.iter().copied())
                    && window[1..].iter().all(|word| word.continues)
            });
            found.extend(hits.map(|window| (window[0].line, *phrase, *replacement)));
        }
    }
    found.sort_unstable();
    found
}

#[test]
fn prose_and_names_use_standard_terms() {
    let mut wrong = Vec::new();
    for (path, text) in tracked_files() {
        if !is_exempt(&path) {
            // The tables of the changelog hold old names.
            let is_old = |line: &str| path == "CHANGELOG.md" && line.starts_with('|');
            let text: String =
                text.lines().map(|line| if is_old(line) { "\n".into() } else { format!("{line}\n") }).collect();
            let hits = ruled_out(&text).into_iter();
            wrong.extend(hits.map(|(line, word, replacement)| format!("{path}:{line}: \"{word}\" → {replacement}")));
        }
    }
    report(wrong, "use the terms of the glossary in ARCHITECTURE.md");
}

#[test]
fn ruled_out_words_are_found_in_prose_and_identifiers() {
    let lines = |text| ruled_out(text).into_iter().map(|(line, word, _)| (line, word)).collect::<Vec<_>>();
    assert_eq!(lines("The watcher was\nTold."), [(2, "told")]);
    assert_eq!(lines("fn was_told() { isTold(TELLS_ALL) }"), [(1, "tells"), (1, "told"), (1, "told")]);
    assert_eq!(lines("// runs for\n// ever"), [(1, "for ever")]);
    assert_eq!(lines("untold intellect; bold hearth; the forever loop; (last, word)"), []);
}
