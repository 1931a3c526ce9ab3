//! The HTTP port: `/livez`, `/readyz` and `/metrics`, for probes and collectors, and the console for people.
//!
//! `/livez` says only that the process answers: a probe that restarts a node because its group has no
//! leader makes an outage longer. `/readyz` fails while any check fails, with the failing ones in the
//! body; `?verbose` lists all, `?exclude=name` leaves one out.

pub mod accept;
pub mod picture;
pub mod console;

use std::convert::Infallible;
use std::future::Future;
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::RawQuery;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::server::http::accept::Few;
use crate::telemetry::metrics;

/// At 50,000 requests per second, less than ten megabytes of samples wait.
const METRICS_UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// One part of being ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// A short word for it, such as `placement` or `disk`. May be a group.
    pub name: String,
    /// Whether it holds.
    pub ok: bool,
    /// What was found, in a few words.
    pub detail: String,
}

/// What the probes ask. Answers at once, from what is known.
pub trait Checks: Send + Sync + 'static {
    /// Every part of being ready. All hold: the node may be sent traffic.
    fn readiness(&self) -> Vec<Check>;
}

impl<F: Fn() -> Vec<Check> + Send + Sync + 'static> Checks for F {
    fn readiness(&self) -> Vec<Check> {
        self()
    }
}

/// Serves until `stop` completes; then open connections end. Also keeps the metrics small.
pub async fn serve(
    listener: TcpListener,
    checks: Arc<dyn Checks>,
    console: console::Source,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let server =
        axum::serve(Few::of(listener), router(checks, console)).with_graceful_shutdown(stop);
    tokio::select! {
        biased;
        served = server.into_future() => served,
        never = keep_metrics() => match never {},
    }
}

/// What is pushed is kept one by one until somebody gathers it, and nobody may ever ask for it.
async fn keep_metrics() -> Infallible {
    let mut ticks = tokio::time::interval(METRICS_UPKEEP_INTERVAL);
    loop {
        ticks.tick().await;
        metrics::upkeep();
    }
}

fn router(checks: Arc<dyn Checks>, console: console::Source) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render_metrics))
        .route("/favicon.ico", get(|| async { StatusCode::NO_CONTENT }))
        .fallback(not_found)
        .with_state(checks)
        .merge(console::router(console))
}

async fn livez() -> &'static str {
    "ok\n"
}

async fn readyz(State(checks): State<Arc<dyn Checks>>, RawQuery(query): RawQuery) -> Response {
    let (status, body) = report(&checks.readiness(), query.as_deref().unwrap_or_default());
    (status, body).into_response()
}

/// The answer of `/readyz`. A check's detail is its own business; it never holds a key.
fn report(checks: &[Check], query: &str) -> (StatusCode, String) {
    let has = |wanted: &str| query.split('&').any(|part| part == wanted);
    let verbose = has("verbose") || has("verbose=true") || has("verbose=1");
    let counted = |check: &&Check| !has(&format!("exclude={}", check.name));
    let failed = checks.iter().filter(counted).any(|check| !check.ok);
    let shown = checks.iter().filter(|check| verbose || !check.ok);
    let mut lines: Vec<String> = shown.map(line).collect();
    lines.push(if failed { "not ready" } else { "ok" }.to_owned());
    let status = if failed {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    };
    (status, lines.join("\n") + "\n")
}

fn line(check: &Check) -> String {
    let (sign, word) = if check.ok {
        ('+', "ok")
    } else {
        ('-', "failed")
    };
    format!("[{sign}] {} {word}: {}", check.name, check.detail)
}

async fn render_metrics() -> Response {
    let format = "text/plain; version=0.0.4; charset=utf-8";
    ([(CONTENT_TYPE, format)], metrics::render()).into_response()
}

async fn not_found() -> Response {
    let body = "not found; there are /console/, /livez, /readyz, /readyz?verbose and /metrics\n";
    (StatusCode::NOT_FOUND, body).into_response()
}
