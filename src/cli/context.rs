//! What every verb is given: the common flags, the world, and clients made from both.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value as Json;

use crate::cli::Global;
use crate::cli::failure::Failure;
use crate::cli::text::Format;
use crate::cli::world::World;
use crate::client::Admin;
use crate::client::Kv;
use crate::client::Sender;
use crate::client::sender::Options;

/// For each request with all its attempts, unless `--timeout` says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What every verb is given.
pub struct Context {
    /// The common flags.
    pub global: Global,
    /// Input, output, network.
    pub world: World,
}

impl Context {
    /// Out of its parts.
    pub fn new(global: Global, world: World) -> Context {
        Context { global, world }
    }

    /// Keys and values.
    pub fn kv(&self) -> Result<Kv, Failure> {
        Ok(Kv::new(self.sender(0, self.timeout())?))
    }

    /// The cluster as such.
    pub fn admin(&self) -> Result<Admin, Failure> {
        Ok(Admin::new(self.sender(0, self.timeout())?))
    }

    /// Keys and values over connections of their own, with `deadline` for each request and the
    /// endpoint numbered `first` asked first.
    pub fn kv_of_its_own(&self, first: usize, deadline: Duration) -> Result<Kv, Failure> {
        Ok(Kv::new(self.sender(first, deadline)?))
    }

    /// For each request with all its attempts.
    pub fn timeout(&self) -> Duration {
        self.global.timeout.unwrap_or(TIMEOUT)
    }

    /// Whether results are for programs.
    pub fn is_json(&self) -> bool {
        self.global.format == Format::Json
    }

    /// Prints one JSON object on a line of its own.
    pub fn print_json(&self, value: impl Into<Json>) -> Result<(), Failure> {
        self.world.print(format!("{}\n", value.into()))
    }

    /// Prints a result: the object for programs, the line for people.
    pub fn print_result(&self, json: impl Into<Json>, line: &str) -> Result<(), Failure> {
        match self.global.format {
            Format::Json => self.print_json(json),
            Format::Table => self.world.print(format!("{line}\n")),
        }
    }

    /// Tells why a verb did not do what was asked.
    pub fn tell_failure(&self, failure: &Failure) {
        if failure.message.is_none() {
            return;
        }
        match self.global.format {
            Format::Json => self.world.tell(failure.to_json().to_string()),
            Format::Table => self.world.tell(format!("error: {failure}")),
        }
    }

    fn sender(&self, first: usize, deadline: Duration) -> Result<Arc<Sender>, Failure> {
        let options = Options {
            deadline,
            cluster: self.global.cluster,
            first,
            ..Options::default()
        };
        let endpoints = self.global.endpoints.clone();
        let ids = Arc::new(self.world.ids());
        let sender = Sender::new(self.world.channel(), endpoints, ids, options)?;
        Ok(Arc::new(sender))
    }
}
