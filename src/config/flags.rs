//! The flags of the server with their environment variables, derived from the declared settings.

use std::path::PathBuf;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, Parser};
use toml::{Table, Value};

use super::{
    schema::Config,
    setting::{Section, Setting, Source},
};

/// Flags of `sessiond serve` and `sessiond config`, or their environment variables.
#[derive(Parser)]
pub struct Flags {
    /// Path of the TOML file [default: none].
    #[arg(long, env = "SESSIOND_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    given: Given,
}

/// Settings that were given as flags or in the environment, as texts.
struct Given(Table);

impl Flags {
    /// Returns the table of the file with the given flags over it. Adds a problem if the file is unreadable; the table is empty then.
    pub(super) fn over_file(&self, problems: &mut Vec<String>) -> Table {
        let mut table = match self.file() {
            Ok(table) => table,
            Err(problem) => {
                // Without the file, checks of the flags against its settings would report false problems.
                problems.push(problem);
                return Table::new();
            }
        };
        for setting in Config::SETTINGS.iter().filter(|setting| setting.source == Source::Environment) {
            if table.remove(setting.key).is_some() {
                problems.push(format!("{}: is not read from the file; set {}", setting.key, variable(setting)));
            }
        }
        table.extend(self.given.0.clone());
        table
    }

    fn file(&self) -> Result<Table, String> {
        let Some(path) = &self.config else { return Ok(Table::new()) };
        let named = |problem: &dyn std::fmt::Display| format!("config: {}: {problem}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| named(&error))?;
        text.parse().map_err(|error: toml::de::Error| {
            // The message without the line that it is about, which may contain a password.
            let line = 1 + error.span().map_or(0, |span| text[..span.start].matches('\n').count());
            named(&format_args!("line {line}: {}", error.message()))
        })
    }
}

impl Args for Given {
    fn augment_args(command: Command) -> Command {
        command.args(settings().map(argument))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Given {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = Given(Table::new());
        given.update_from_arg_matches(matches)?;
        Ok(given)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let given = settings().filter_map(|setting| Some((setting.key, matches.get_one::<String>(setting.key)?)));
        self.0.extend(given.map(|(key, text)| (key.to_owned(), Value::from(text.clone()))));
        Ok(())
    }
}

fn settings() -> impl Iterator<Item = &'static Setting<Config>> {
    Config::SETTINGS.iter().filter(|setting| setting.source != Source::Key)
}

/// Returns the name of the setting's environment variable.
fn variable(setting: &Setting<Config>) -> String {
    format!("SESSIOND_{}", setting.key.to_uppercase())
}

fn argument(setting: &Setting<Config>) -> Arg {
    let about = (setting.about)();
    // The default is part of the text only: a value that clap fills in would replace the one in the file.
    let help = format!("{} [default: {}]", setting.meaning(), (setting.to_text)(&Config::default()));
    let argument = Arg::new(setting.key)
        .long(setting.key.replace('_', "-"))
        .env(variable(setting))
        .hide(setting.source == Source::Environment)
        .hide_env_values(about.is_secret)
        .value_name(setting.key.to_uppercase())
        .help(help);
    if about.is_switch { argument.num_args(0..=1).default_missing_value("true") } else { argument }
}
