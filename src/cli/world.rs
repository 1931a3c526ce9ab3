//! What a verb touches besides the cluster: its input, its output, the network and the clock. Tests put
//! their own in place of each.

use std::io;
use std::io::BufWriter;
use std::io::IsTerminal;
use std::io::Read;
use std::io::Write;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use crate::cli::failure::Failure;
use crate::client::RequestIds;
use crate::env::clock::Clock;
use crate::env::rng::Chance;
use crate::wire::request::Channel;

type MakeChannel = Box<dyn Fn() -> Arc<dyn Channel> + Send + Sync>;
type MakeIds = Box<dyn Fn() -> RequestIds + Send + Sync>;

/// The surroundings of a verb.
pub struct World {
    make_channel: MakeChannel,
    make_ids: MakeIds,
    stdin: Mutex<Option<Box<dyn Read + Send>>>,
    stdout: Mutex<Box<dyn Write + Send>>,
    stderr: Mutex<Box<dyn Write + Send>>,
    /// Whether a person sees the results.
    pub stdout_is_terminal: bool,
    /// Whether a person sees messages and progress.
    pub stderr_is_terminal: bool,
}

impl World {
    /// The process's own streams, the machine's clock and chance, and the network given.
    pub fn of_process(
        make_channel: impl Fn() -> Arc<dyn Channel> + Send + Sync + 'static,
    ) -> World {
        let clock = Clock::system();
        let make_ids = move || {
            let clock = clock.clone();
            RequestIds::new(move || clock.wall_ms(), || Chance.bytes())
        };
        let mut world = World::new(
            make_channel,
            make_ids,
            io::stdin(),
            BufWriter::new(io::stdout()),
            io::stderr(),
        );
        world.stdout_is_terminal = io::stdout().is_terminal();
        world.stderr_is_terminal = io::stderr().is_terminal();
        world
    }

    /// Any streams, none of them a terminal.
    pub fn new(
        make_channel: impl Fn() -> Arc<dyn Channel> + Send + Sync + 'static,
        make_ids: impl Fn() -> RequestIds + Send + Sync + 'static,
        stdin: impl Read + Send + 'static,
        stdout: impl Write + Send + 'static,
        stderr: impl Write + Send + 'static,
    ) -> World {
        World {
            make_channel: Box::new(make_channel),
            make_ids: Box::new(make_ids),
            stdin: Mutex::new(Some(Box::new(stdin))),
            stdout: Mutex::new(Box::new(stdout)),
            stderr: Mutex::new(Box::new(stderr)),
            stdout_is_terminal: false,
            stderr_is_terminal: false,
        }
    }

    /// A network of its own: connections are not shared with another one.
    pub fn channel(&self) -> Arc<dyn Channel> {
        (self.make_channel)()
    }

    /// A source of identities of writes.
    pub fn ids(&self) -> RequestIds {
        (self.make_ids)()
    }

    /// Standard input, which can be taken once.
    pub fn take_stdin(&self) -> Result<Box<dyn Read + Send>, Failure> {
        let mut stdin = self.stdin.lock().unwrap_or_else(PoisonError::into_inner);
        stdin
            .take()
            .ok_or_else(|| Failure::bad_input("standard input can be read only once"))
    }

    /// Writes to standard output. Buffered until [`World::flush`].
    pub fn print(&self, bytes: impl AsRef<[u8]>) -> Result<(), Failure> {
        let mut stdout = self.stdout.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(stdout.write_all(bytes.as_ref())?)
    }

    /// Hands on what was printed.
    pub fn flush(&self) -> Result<(), Failure> {
        let mut stdout = self.stdout.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(stdout.flush()?)
    }

    /// Tells a person something, one line. That nobody listens is no reason to stop working.
    pub fn tell(&self, line: impl AsRef<str>) {
        let mut stderr = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(stderr, "{}", line.as_ref());
        let _ = stderr.flush();
    }
}
