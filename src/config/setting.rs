//! The declaration of one setting, from which its flag, its key, its default, its check, its output and its row in the
//! reference are derived.

use toml::{Table, Value};

use super::kind::{About, Kind};

/// Places in which a setting can be given.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// Flag, environment variable, or key of the file.
    Flag,
    /// Key of the file only.
    Key,
    /// Environment variable or hidden flag; not in the file, which others may be able to read.
    Environment,
}

/// One setting of the section `S`.
pub(super) struct Setting<S> {
    /// Key in the file. The flag has `-` for `_`, the environment variable is SESSIOND_ and the key in upper case.
    pub key: &'static str,
    /// Places in which the setting can be given.
    pub source: Source,
    /// Lines of the doc comment.
    pub doc: &'static [&'static str],
    /// Returns the description of the accepted values.
    pub about: fn() -> About,
    /// Parses a value into the section. Returns None if the value is not accepted.
    pub parse: fn(&mut S, &Value) -> Option<()>,
    /// Returns the value of the section for the file, secrets masked. None: absent.
    pub to_toml: fn(&S) -> Option<Value>,
    /// Returns the value of the section for the reference and `--help`.
    pub to_text: fn(&S) -> String,
}

impl<S> Setting<S> {
    /// Returns the meaning of the setting in one line.
    pub(super) fn meaning(&self) -> String {
        self.doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
    }
}

/// A struct whose fields are settings: a table of the file.
pub(super) trait Section: Sized + 'static {
    /// Every setting of the section.
    const SETTINGS: &'static [Setting<Self>];

    /// Returns the section as a table of the file, secrets masked.
    fn to_table(&self) -> Table {
        let settings = Self::SETTINGS.iter();
        settings.filter_map(|setting| Some((setting.key.to_owned(), (setting.to_toml)(self)?))).collect()
    }
}

/// Declares settings, one per field: doc comment, source, key, type, default, kind.
///
/// With `pub struct`, it also declares the struct with its `Default`; fields of `sections` are no settings of the table
/// itself. Without it, it declares the settings of a struct that exists: doc comment, source, key, kind.
macro_rules! settings {
    (
        $(#[$attribute:meta])*
        pub struct $name:ident {
            $( $(#[doc = $doc:literal])+ $source:ident $key:ident: $type:ty = $default:expr, $kind:expr; )+
        }
        $( sections { $( $(#[doc = $section_doc:literal])+ $section:ident: $section_type:ty; )+ } )?
    ) => {
        $(#[$attribute])*
        pub struct $name {
            $( $(#[doc = $doc])+ pub $key: $type, )+
            $( $( $(#[doc = $section_doc])+ pub $section: $section_type, )+ )?
        }

        impl Default for $name {
            fn default() -> Self {
                $name { $( $key: $default, )+ $( $( $section: Default::default(), )+ )? }
            }
        }

        settings! { $name { $( $(#[doc = $doc])+ $source $key: $kind; )+ } }
    };
    ($name:ident { $( $(#[doc = $doc:literal])+ $source:ident $key:ident: $kind:expr; )+ }) => {
        impl Section for $name {
            const SETTINGS: &'static [Setting<Self>] = &[
                $( Setting {
                    key: stringify!($key),
                    source: Source::$source,
                    doc: &[$($doc),+],
                    about: || about(|section: &$name| &section.$key, $kind),
                    parse: |section, value| {
                        section.$key = $kind.parse(value)?;
                        Some(())
                    },
                    to_toml: |section| $kind.to_toml(&section.$key),
                    to_text: |section| $kind.to_text(&section.$key),
                }, )+
            ];
        }
    };
}
pub(super) use settings;

/// Returns the description of a kind. The field selects its Rust type.
pub(super) fn about<S, T>(_: fn(&S) -> &T, kind: Kind<T>) -> About {
    kind.about
}
