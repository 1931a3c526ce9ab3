//! Serves what is asked in the words of a keyspace, by asking for stored keys.

use futures::future::join_all;
use tokio::time::Instant;

use crate::error::Error;
use crate::error::Result;
use crate::server::handler::serve_keys;
use crate::server::host::Host;
use crate::server::keyspace::Gathering;
use crate::server::keyspace::Interpreter;
use crate::server::keyspace::resume_of;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::keyspace::Definition;
use crate::types::keyspace::Keyspace;
use crate::types::keyspace::Layout;
use crate::types::overview::Arrangement;
use crate::types::request::Answered;
use crate::types::request::ReadKind;
use crate::types::request::Write;
use crate::types::request::WriteKind;
use crate::types::request::WriteOutcome;
use crate::types::walk::Walk;
use crate::wire::request::KeyRequest;
use crate::wire::request::Page;
use crate::wire::request::Request;
use crate::wire::request::Response;
use crate::wire::request::Scan;
use crate::wire::request::Within;

/// Buckets that are read at once for one scan.
const BUCKETS_AT_ONCE: usize = 16;

/// By when the answer has to be there, and whether the request was sent on.
#[derive(Clone, Copy)]
pub(super) struct Terms {
    pub(super) until: Instant,
    pub(super) once: bool,
}

/// Answers what is asked of the keys of a keyspace.
pub(super) async fn serve(host: &Host, within: Within, terms: Terms) -> Result<Response> {
    let found = host
        .keyspaces
        .find(&within.keyspace, &host.placement, terms.until);
    let keyspace = found.await?;
    let interpreter = Interpreter(&keyspace);
    let ask = |request| serve_keys(host, request, terms.until, terms.once);
    let answer = match within.request {
        KeyRequest::Get(get) => ask(Request::Get(interpreter.get(get)?)).await,
        KeyRequest::BatchGet(get) => ask(Request::BatchGet(interpreter.batch_get(get)?)).await,
        KeyRequest::Scan(scan) => {
            let page = match keyspace.layout {
                Layout::Ordered => {
                    scan_ordered(host, interpreter, scan, within.resume, terms).await
                }
                Layout::Hash(_) => scan_hash(host, interpreter, scan, within.resume, terms).await,
            };
            page.map(Response::Scan)
        }
        KeyRequest::Write(write) => {
            let written = write_keys(host, interpreter, write, within.resume, terms).await;
            written
                .map(|(outcome, answered)| Response::Write(interpreter.outcome(outcome), answered))
        }
    };
    answer.map_err(|error| interpreter.error(error))
}

async fn write_keys(
    host: &Host,
    interpreter: Interpreter<'_>,
    write: Write,
    resume: Option<Key>,
    terms: Terms,
) -> Result<(WriteOutcome, Answered)> {
    let Write { id, kind } = write;
    let (range, limit) = match kind {
        WriteKind::Keys {
            conditions,
            operations,
        } => {
            let kind = interpreter.write(conditions, operations)?;
            return send_write(host, Write { id, kind }, terms).await;
        }
        WriteKind::Range { range, limit } => (range, limit),
    };
    interpreter.check_range(&range)?;
    let keyspace = interpreter.0;
    let Some(walk) = Walk::new(keyspace, &range, false) else {
        let range = keyspace.stored_range(&going_on(range.clone(), resume)?);
        let kind = WriteKind::Range { range, limit };
        let (outcome, answered) = send_write(host, Write { id, kind }, terms).await?;
        let place = |stored: Key| keyspace.place(&stored);
        return Ok((with_resume(outcome, |left| left.and_then(place)), answered));
    };
    let span = next_span(keyspace, &walk, resume.as_ref());
    let range = span.clone();
    let kind = WriteKind::Range { range, limit };
    let (outcome, answered) = send_write(host, Write { id, kind }, terms).await?;
    let resume = |left: Option<Key>| resume_of(&walk, &span, left.as_ref());
    Ok((with_resume(outcome, resume), answered))
}

/// What is left of a range from a resume key on.
fn going_on(range: KeyRange, resume: Option<Key>) -> Result<KeyRange> {
    let Some(start) = resume else {
        return Ok(range);
    };
    match range.contains(&start) {
        true => Ok(KeyRange { start, ..range }),
        false => Err(Error::invalid("resume_key", "it is outside of the range")),
    }
}

fn with_resume(
    outcome: WriteOutcome,
    resume: impl FnOnce(Option<Key>) -> Option<Key>,
) -> WriteOutcome {
    match outcome {
        WriteOutcome::Done {
            version,
            deleted,
            resume: left,
        } => WriteOutcome::Done {
            version,
            deleted,
            resume: resume(left),
        },
        other => other,
    }
}

async fn send_write(host: &Host, write: Write, terms: Terms) -> Result<(WriteOutcome, Answered)> {
    let request = Request::Write(write);
    match serve_keys(host, request, terms.until, terms.once).await? {
        Response::Write(outcome, answered) => Ok((outcome, answered)),
        other => Err(Error::Internal(format!("a write was answered {other:?}"))),
    }
}

async fn scan_ordered(
    host: &Host,
    interpreter: Interpreter<'_>,
    scan: Scan,
    resume: Option<Key>,
    terms: Terms,
) -> Result<Page> {
    if resume.is_some() {
        let reason = "only a hash keyspace has one: send resume as range";
        return Err(Error::invalid("resume_key", reason));
    }
    interpreter.check_range(&scan.range)?;
    let range = interpreter.0.stored_range(&scan.range);
    let page = read(host, Scan { range, ..scan }, terms).await?;
    Ok(interpreter.ordered(page))
}

async fn scan_hash(
    host: &Host,
    interpreter: Interpreter<'_>,
    scan: Scan,
    resume: Option<Key>,
    terms: Terms,
) -> Result<Page> {
    interpreter.check_range(&scan.range)?;
    let (keyspace, asked) = (interpreter.0, scan.range.clone());
    let Some(walk) = Walk::new(keyspace, &asked, scan.reverse) else {
        return Err(Error::Internal(
            "an ordered keyspace has no buckets".to_owned(),
        ));
    };
    if !walk.is_whole() && scan.cut.is_some() {
        let reason = "a scan of some keys of a hash keyspace is no cut that can be gone on with";
        return Err(Error::invalid("as_of", reason));
    }
    if !walk.is_whole() {
        let mut gathering = Gathering::new(interpreter, &walk, &scan, resume.clone());
        gather(host, &mut gathering, &scan, terms).await?;
        if let Some(page) = gathering.end(&asked) {
            return Ok(page);
        }
    }
    let range = next_span(keyspace, &walk, resume.as_ref());
    let page = read(host, Scan { range, ..scan }, terms).await?;
    Ok(interpreter.whole(&walk, page))
}

/// The same keys of bucket after bucket, several at once, until there are enough; with half of the time gone,
/// what there is.
async fn gather(
    host: &Host,
    gathering: &mut Gathering<'_>,
    scan: &Scan,
    terms: Terms,
) -> Result<()> {
    let half = terms.until.saturating_duration_since(Instant::now()) / 2;
    let enough = Instant::now() + half;
    loop {
        let spans = gathering.spans(BUCKETS_AT_ONCE);
        if spans.is_empty() {
            return Ok(());
        }
        let parts = spans.iter().map(|span| {
            let range = span.clone();
            read(
                host,
                Scan {
                    range,
                    ..scan.clone()
                },
                terms,
            )
        });
        for (span, page) in spans.iter().zip(join_all(parts).await) {
            let page = match page {
                Ok(page) => page,
                // What is behind what was found is asked for next.
                Err(_) if gathering.has_items() => return Ok(()),
                Err(error) => return Err(error),
            };
            if !gathering.take(span, page) {
                break;
            }
        }
        if Instant::now() >= enough {
            return Ok(());
        }
    }
}

/// Where a walk goes on; behind its end there is nothing, which any shard can say.
fn next_span(keyspace: &Keyspace, walk: &Walk<'_>, resume: Option<&Key>) -> KeyRange {
    let next = walk.spans(resume, 1).into_iter().next();
    next.unwrap_or_else(|| {
        let start = keyspace.range().start;
        KeyRange {
            end: Some(start.clone()),
            start,
        }
    })
}

async fn read(host: &Host, scan: Scan, terms: Terms) -> Result<Page> {
    match serve_keys(host, Request::Scan(scan), terms.until, terms.once).await? {
        Response::Scan(page) => Ok(page),
        other => Err(Error::Internal(format!("a scan was answered {other:?}"))),
    }
}

/// Has placement record what a person wants. What is wanted of a keyspace depends on whether it has keys, which
/// placement does not know.
pub(super) async fn arrange(host: &Host, arrangement: Arrangement, terms: Terms) -> Result<()> {
    let Terms { until, .. } = terms;
    let is_about_keyspaces = match &arrangement {
        Arrangement::CreateKeyspace(keyspace) => {
            let told = host.keyspaces.refresh(&host.placement, until).await?;
            check_creation(host, keyspace, &told, terms).await?;
            true
        }
        Arrangement::DeleteKeyspace { name } => {
            let told = host.keyspaces.refresh(&host.placement, until).await?;
            let mut named = told.iter().filter(|known| known.keyspace.name == *name);
            let known = named.next().ok_or_else(|| Error::NoKeyspace {
                name: name.to_string(),
            })?;
            // It may be this very request that has deleted it, and whose answer was lost.
            if !known.retired && has_keys(host, known.keyspace.range(), terms).await? {
                let reason = format!("keyspace {name} has keys; delete them first");
                return Err(Error::invalid("delete_keyspace", reason));
            }
            true
        }
        Arrangement::SetDuty { .. }
        | Arrangement::SetRule(_)
        | Arrangement::DeleteRule { .. }
        | Arrangement::SetSetting { .. }
        | Arrangement::SetPaused(_)
        | Arrangement::CancelOperator { .. }
        | Arrangement::MoveReplica { .. }
        | Arrangement::MergeShard { .. } => false,
    };
    host.placement.arrange(arrangement, until).await?;
    if is_about_keyspaces {
        // It is recorded: if this node cannot hear of it now, it will within a second.
        let _ = host.keyspaces.refresh(&host.placement, until).await;
    }
    Ok(())
}

/// Keys that are there already would be in the wrong buckets.
async fn check_creation(
    host: &Host,
    keyspace: &Keyspace,
    told: &[Definition],
    terms: Terms,
) -> Result<()> {
    let is_repeat = told.iter().any(|known| known.keyspace == *keyspace);
    if keyspace.layout == Layout::Ordered || is_repeat {
        return Ok(());
    }
    if has_keys(host, keyspace.range(), terms).await? {
        let prefix = keyspace.prefix.escape_ascii();
        let reason = format!("there are keys already that begin with {prefix}");
        return Err(Error::invalid("create_keyspace", reason));
    }
    Ok(())
}

async fn has_keys(host: &Host, range: KeyRange, terms: Terms) -> Result<bool> {
    let mut left = Some(range);
    while let Some(range) = left.take() {
        let scan = Scan {
            range,
            keys_max: 1,
            bytes_max: u32::MAX,
            reverse: false,
            keys_only: true,
            read: ReadKind::Linearizable,
            cut: None,
        };
        let page = read(host, scan, terms).await?;
        if !page.items.is_empty() {
            return Ok(true);
        }
        left = page.rest;
    }
    Ok(false)
}
