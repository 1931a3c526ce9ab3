//! Sets up the process's log: text for people, JSON for collectors, always on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Text on a terminal, else JSON.
    Auto,
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// The log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter does not read.
    #[error(
        "log = {filter}: {reason}; write error, warn, info, debug, trace, or info,quorate::raft=debug"
    )]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is a log already.
    #[error("the process has a log already")]
    Installed,
}

/// Installs the log for the whole process, once. `filter` is a level or a level per module.
pub fn install(filter: &str, format: Format) -> Result<(), LogError> {
    let terminal = std::io::stderr().is_terminal();
    let json = match format {
        Format::Auto => !terminal,
        Format::Text => false,
        Format::Json => true,
    };
    let subscriber = subscriber(filter, json, terminal, std::io::stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::Installed)
}

fn subscriber<W>(
    filter: &str,
    json: bool,
    color: bool,
    writer: W,
) -> Result<Box<dyn tracing::Subscriber + Send + Sync>, LogError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let parsed = EnvFilter::builder()
        .parse(filter)
        .map_err(|error| LogError::Filter {
            filter: filter.to_owned(),
            reason: error.to_string(),
        })?;
    let registry = tracing_subscriber::registry().with(parsed);
    Ok(if json {
        Box::new(registry.with(json_layer(writer)))
    } else {
        Box::new(registry.with(fmt::layer().with_ansi(color).with_writer(writer)))
    })
}

fn json_layer<S, W>(writer: W) -> impl tracing_subscriber::Layer<S>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    fmt::layer().json().flatten_event(true).with_writer(writer)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(filter: &str, json: bool) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = subscriber(filter, json, false, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(shard = 7, "leader changed");
            tracing::debug!("not asked for");
        });
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_json_line_has_its_fields_at_the_top() {
        let text = logged("info", true);
        let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!(line["message"], "leader changed");
        assert_eq!(line["shard"], 7);
        assert_eq!(line["level"], "INFO");
    }

    #[test]
    fn the_filter_decides_what_is_logged() {
        assert!(logged("info", false).contains("leader changed shard=7"));
        assert_eq!(logged("error", false), "");
        assert!(subscriber("info,=nonsense=", false, false, io::stderr).is_err());
    }
}
