//! Waiting for what placement has been told to do: looks again and again, outlasts a change of placement's
//! leader, and ends at Ctrl-C. What was told stays in force whatever ends the waiting, and each end says so.

use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::time::Instant;

use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::client::Admin;
use crate::error::Advice;
use crate::error::Error;
use crate::types::overview::Overview;
use crate::wire::request::OverviewQuery;

/// Between two looks.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Placement has a leader again in seconds; when it has not answered for so long, nobody will soon.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Looks at what placement does.
pub(super) struct Waiting<'a> {
    context: &'a Context,
    admin: Admin,
    /// What stays in force, as a sentence.
    stays: String,
    interrupt: Signal,
    started: Instant,
    answered: Instant,
    looked: bool,
    /// Whether a person has been told that placement does not answer.
    told: bool,
}

impl<'a> Waiting<'a> {
    /// Something has been told, and `stays` says that it stays in force.
    pub(super) fn start(context: &'a Context, stays: String) -> Result<Waiting<'a>, Failure> {
        let now = Instant::now();
        Ok(Waiting {
            context,
            admin: context.admin()?,
            stays,
            interrupt: signal(SignalKind::interrupt())?,
            started: now,
            answered: now,
            looked: false,
            told: false,
        })
    }

    /// Since the start.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// What placement says now; before all looks but the first it waits a moment.
    pub(super) async fn look(&mut self) -> Result<Overview, Failure> {
        loop {
            let pause = match std::mem::replace(&mut self.looked, true) {
                true => LOOK_INTERVAL,
                false => Duration::ZERO,
            };
            let (admin, query) = (&self.admin, OverviewQuery::default());
            // Cancel-safe: a question that is dropped is asked again.
            let answer = tokio::select! {
                biased;
                _ = self.interrupt.recv() => return Err(self.failed(Failure::error("interrupted"))),
                answer = async {
                    tokio::time::sleep(pause).await;
                    admin.overview(query, None).await
                } => answer,
            };
            match answer {
                Ok(overview) => {
                    self.answered = Instant::now();
                    self.told = false;
                    return Ok(overview);
                }
                Err(error) if self.is_final(&error) => return Err(self.failed(error.into())),
                Err(error) => self.tell_once(&error),
            }
        }
    }

    /// The end of the waiting without what was waited for.
    pub(super) fn failed(&self, mut failure: Failure) -> Failure {
        let stays = &self.stays;
        failure.message = failure.message.map(|message| format!("{message}; {stays}"));
        failure
    }

    fn is_final(&self, error: &Error) -> bool {
        matches!(error.advice(), Advice::Fix | Advice::Stop)
            || self.answered.elapsed() >= SILENCE_MAX
    }

    fn tell_once(&mut self, error: &Error) {
        if !std::mem::replace(&mut self.told, true) {
            self.context
                .world
                .tell(format!("placement does not answer, still waiting: {error}"));
        }
    }
}
