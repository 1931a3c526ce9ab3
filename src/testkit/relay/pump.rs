//! One way of one connection: reads segments, lets each travel, and writes it at the other end, if
//! the way's rule lets it arrive.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::tcp::ReadHalf;
use tokio::net::tcp::WriteHalf;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::env::rng::Seeded;
use crate::testkit::relay::Passage;
use crate::testkit::relay::Rule;
use crate::testkit::relay::Rules;
use crate::testkit::relay::Way;
use crate::testkit::relay::line::Line;
use crate::testkit::relay::rule_of;
use crate::testkit::relay::spoil::Spoils;
use crate::testkit::relay::wait_for_change;

/// Bytes of a segment at most: what is read at once.
const SEGMENT_BYTES: usize = 16 * 1024;
/// Segments under way. Full: no more is read, and the sender is held back.
const SEGMENTS_WAITING_MAX: usize = 256;

/// The connection is to be reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Broken;

/// One way of one connection.
#[derive(Debug)]
pub(super) struct Pump {
    way: Way,
    rules: watch::Receiver<Rules>,
    spoils: Arc<Spoils>,
    chance: Seeded,
}

/// What travels.
#[derive(Debug)]
struct Segment {
    arrives: Instant,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Bytes(Bytes),
    /// The sender has no more to say.
    End,
    /// The sender's connection broke.
    Broken,
}

impl Pump {
    pub(super) fn new(
        way: Way,
        rules: watch::Receiver<Rules>,
        spoils: Arc<Spoils>,
        seed: u64,
    ) -> Pump {
        Pump {
            way,
            rules,
            spoils,
            chance: Seeded::new(seed),
        }
    }

    /// Carries everything until the sender has ended, which is then said at the other end.
    pub(super) async fn run(self, from: ReadHalf<'_>, to: WriteHalf<'_>) -> Result<(), Broken> {
        let (sender, waiting) = mpsc::channel(SEGMENTS_WAITING_MAX);
        let arrivals = Arrivals {
            way: self.way,
            rules: self.rules.clone(),
            waiting,
            to,
        };
        tokio::try_join!(self.take(from, sender), arrivals.deliver())?;
        Ok(())
    }

    /// Reads what is sent and says when it arrives.
    async fn take(
        mut self,
        mut from: ReadHalf<'_>,
        sender: mpsc::Sender<Segment>,
    ) -> Result<(), Broken> {
        let began = Instant::now();
        let mut line = Line::default();
        let mut buffer = vec![0; SEGMENT_BYTES];
        loop {
            let content = match from.read(&mut buffer).await {
                Ok(0) => Content::End,
                Ok(count) => {
                    self.spoils.pass(self.way, &mut buffer[..count]);
                    Content::Bytes(Bytes::copy_from_slice(&buffer[..count]))
                }
                Err(_) => Content::Broken,
            };
            let last = !matches!(content, Content::Bytes(_));
            let rule = rule_of(&self.rules.borrow(), self.way);
            let arrives = began + self.arrival(&mut line, began.elapsed(), &content, &rule);
            if sender.send(Segment { arrives, content }).await.is_err() || last {
                return Ok(());
            }
        }
    }

    fn arrival(
        &mut self,
        line: &mut Line,
        now: Duration,
        content: &Content,
        rule: &Rule,
    ) -> Duration {
        let bytes = match content {
            Content::Bytes(bytes) => bytes.len(),
            Content::End | Content::Broken => 0,
        };
        line.arrival(now, bytes, rule, &mut self.chance)
    }
}

/// The far end of a way.
struct Arrivals<'a> {
    way: Way,
    rules: watch::Receiver<Rules>,
    waiting: mpsc::Receiver<Segment>,
    to: WriteHalf<'a>,
}

impl Arrivals<'_> {
    async fn deliver(mut self) -> Result<(), Broken> {
        while let Some(segment) = self.waiting.recv().await {
            tokio::time::sleep_until(segment.arrives).await;
            if self.is_cut().await {
                return self.lose().await;
            }
            let written = match segment.content {
                Content::Bytes(bytes) => self.to.write_all(&bytes).await,
                Content::End => return self.to.shutdown().await.map_err(|_| Broken),
                Content::Broken => return Err(Broken),
            };
            if written.is_err() {
                // That the receiver is gone is heard over the way back, when that lets it pass.
                wait_open(&mut self.rules, self.way.back()).await;
                return Err(Broken);
            }
        }
        Ok(())
    }

    /// Whether what arrives now is lost. Waits while the way is stalled.
    async fn is_cut(&mut self) -> bool {
        loop {
            match rule_of(&self.rules.borrow_and_update(), self.way).passage {
                Passage::Open => return false,
                Passage::Cut => return true,
                Passage::Stalled => {}
            }
            wait_for_change(&mut self.rules).await;
        }
    }

    /// Forgets what arrives until the way is no longer cut. The stream has a hole then.
    async fn lose(&mut self) -> Result<(), Broken> {
        while rule_of(&self.rules.borrow_and_update(), self.way).passage == Passage::Cut {
            tokio::select! {
                biased;
                () = wait_for_change(&mut self.rules) => {}
                Some(_) = self.waiting.recv() => {}
            }
        }
        Err(Broken)
    }
}

async fn wait_open(rules: &mut watch::Receiver<Rules>, way: Way) {
    while rule_of(&rules.borrow_and_update(), way).passage != Passage::Open {
        wait_for_change(rules).await;
    }
}
