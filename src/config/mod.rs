//! One tree of options: defaults, then the file, then environment, then flags; the later wins.
//!
//! Nothing is ignored silently: a key that the file should not have is refused by name, with the key
//! that was probably meant.

pub mod flags;

use std::path::Path;
use std::path::PathBuf;

use figment::Figment;
use figment::error::Kind;
use figment::providers::Format;
use figment::providers::Serialized;
use figment::providers::Toml;

use crate::config::flags::ServeFlags;
use crate::server::options::OptionError;
use crate::server::options::Options;

/// Why there are no options to start with.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file named by `--config` cannot be read.
    #[error("--config {}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The file has a key that is no option.
    #[error("{}: unknown key {key:?}{}", path.display(), hint(nearest))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The option that was probably meant.
        nearest: Option<String>,
    },
    /// A value does not read, or makes no sense.
    #[error("{0}")]
    Value(String),
    /// A value makes no sense, alone or beside another.
    #[error(transparent)]
    Option(#[from] OptionError),
}

fn hint(nearest: &Option<String>) -> String {
    nearest
        .as_ref()
        .map_or_else(String::new, |key| format!("; did you mean {key:?}?"))
}

/// The options that hold, checked. The environment is already in `flags`, below each flag.
pub fn load(flags: &ServeFlags) -> Result<Options, ConfigError> {
    let mut layers = Figment::from(Serialized::defaults(Options::default()));
    if let Some(path) = &flags.config {
        check_keys(path)?;
        layers = layers.merge(Toml::file_exact(path));
    }
    let options: Options = layers
        .merge(Serialized::defaults(flags))
        .extract()
        .map_err(|error| ConfigError::Value(sentence(&error)))?;
    options.validate()?;
    Ok(options)
}

/// Refuses what is no option before the layers are merged, where it is still known to be the file's.
fn check_keys(path: &Path) -> Result<(), ConfigError> {
    let unreadable = |reason: String| ConfigError::File {
        path: path.to_owned(),
        reason,
    };
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
    check_text(path, &text)
}

/// The options in a file with this text, checked. For the tests that try every decoder.
pub(crate) fn of_text(text: &str) -> Result<Options, ConfigError> {
    check_text(Path::new("the text"), text)?;
    let layers = Figment::from(Serialized::defaults(Options::default())).merge(Toml::string(text));
    let options: Options = layers
        .extract()
        .map_err(|error| ConfigError::Value(sentence(&error)))?;
    options.validate()?;
    Ok(options)
}

fn check_text(path: &Path, text: &str) -> Result<(), ConfigError> {
    let table: figment::value::Dict = Toml::from_str(text).map_err(|error| ConfigError::File {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    let known = known_keys();
    match table.keys().find(|key| !known.contains(key)) {
        None => Ok(()),
        Some(key) => Err(ConfigError::UnknownKey {
            path: path.to_owned(),
            key: key.clone(),
            nearest: nearest(key, &known),
        }),
    }
}

fn known_keys() -> Vec<String> {
    let tree = figment::value::Value::serialize(Options::default())
        .expect("the options are a table of plain values");
    let table = tree.into_dict().expect("the options are a table");
    table.into_keys().collect()
}

/// The known key with the fewest edits, if these are few enough to be a slip.
fn nearest(key: &str, known: &[String]) -> Option<String> {
    let written = key.replace('-', "_").to_lowercase();
    let distances = known.iter().map(|known| (edits(&written, known), known));
    let (distance, best) = distances.min()?;
    (distance <= written.len().max(best.len()) / 3).then(|| best.clone())
}

/// Letters to insert, remove or replace to make one word of the other.
fn edits(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (above, letter) in left.chars().enumerate() {
        let mut diagonal = above;
        row[0] = above + 1;
        for (place, other) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[place + 1];
            row[place + 1] = replaced.min(diagonal + 1).min(row[place] + 1);
        }
    }
    row[right.len()]
}

/// The library's error as `key: what is wrong (where it was set)`.
fn sentence(error: &figment::Error) -> String {
    let key = error.path.join(".");
    let what = match &error.kind {
        Kind::Message(message) => message.clone(),
        kind => kind.to_string(),
    };
    let source = error
        .metadata
        .as_ref()
        .and_then(|data| data.source.as_ref());
    match source {
        Some(source) => format!("{key}: {what} (in {source})"),
        None => format!("{key}: {what}"),
    }
}
