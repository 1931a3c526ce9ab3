//! The console at `/console/`: three files that are part of the program, and what they ask for. Read only.
//!
//! Nothing is asked of other origins, and the page may not be shown inside another: so says its policy.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::RawQuery;
use axum::extract::State;
use axum::http::HeaderName;
use axum::http::StatusCode;
use axum::http::header::CACHE_CONTROL;
use axum::http::header::CONTENT_SECURITY_POLICY;
use axum::http::header::CONTENT_TYPE;
use axum::http::header::X_CONTENT_TYPE_OPTIONS;
use axum::response::IntoResponse;
use axum::response::Redirect;
use axum::response::Response as HttpResponse;
use axum::routing::get;
use serde_json::Value as Json;
use serde_json::json;

use crate::error::Error;
use crate::error::Result;
use crate::server::http::picture::explanation;
use crate::server::http::picture::picture;
use crate::types::ClusterId;
use crate::types::NodeId;
use crate::types::ShardId;
use crate::wire::request::Call;
use crate::wire::request::OverviewQuery;
use crate::wire::request::Request;
use crate::wire::request::Response;
use crate::wire::request::Service;

const PAGE: &str = include_str!("console/index.html");
const STYLE: &str = include_str!("console/console.css");
const SCRIPT: &str = include_str!("console/console.js");

/// How long placement may take to answer: less than the page waits.
const ANSWER_MAX: Duration = Duration::from_secs(5);

const HEADERS: [(HeaderName, &str); 3] = [
    (
        CONTENT_SECURITY_POLICY,
        "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (CACHE_CONTROL, "no-store"),
];

/// Whom the console asks.
#[derive(Clone)]
pub struct Source {
    /// This node.
    pub service: Arc<dyn Service>,
    /// Who it is, once it knows.
    pub identity: Arc<dyn Fn() -> Option<(ClusterId, NodeId)> + Send + Sync>,
}

/// Everything below `/console`.
pub fn router(source: Source) -> Router {
    Router::new()
        .route(
            "/console",
            get(|| async { Redirect::permanent("/console/") }),
        )
        .route("/console/", get(|| file("text/html", PAGE)))
        .route("/console/console.css", get(|| file("text/css", STYLE)))
        .route(
            "/console/console.js",
            get(|| file("text/javascript", SCRIPT)),
        )
        .route("/console/state.json", get(state))
        .route("/console/explain.json", get(explain))
        .with_state(source)
}

async fn file(kind: &'static str, content: &'static str) -> HttpResponse {
    let kind = format!("{kind}; charset=utf-8");
    (HEADERS, [(CONTENT_TYPE, kind)], content).into_response()
}

async fn state(State(source): State<Source>) -> HttpResponse {
    answer(source.state().await)
}

async fn explain(State(source): State<Source>, RawQuery(query): RawQuery) -> HttpResponse {
    let query = query.unwrap_or_default();
    let mut parts = query.split('&');
    let shard = parts.find_map(|part| part.strip_prefix("shard=")?.parse().ok());
    let explained = async {
        let shard = shard.ok_or_else(|| Error::invalid("shard", "a shard's number is needed"))?;
        source.explain(ShardId(shard)).await
    };
    answer(explained.await)
}

fn answer(answer: Result<Json>) -> HttpResponse {
    let (status, body) = match answer {
        Ok(body) => (StatusCode::OK, body),
        Err(error) => {
            let status = match &error {
                Error::NotFound { .. } => StatusCode::NOT_FOUND,
                Error::Invalid { .. } => StatusCode::BAD_REQUEST,
                _ => StatusCode::SERVICE_UNAVAILABLE,
            };
            (status, json!({ "error": error.to_string() }))
        }
    };
    let kind = [(CONTENT_TYPE, "application/json")];
    (status, HEADERS, kind, body.to_string()).into_response()
}

impl Source {
    async fn state(&self) -> Result<Json> {
        let identity = (self.identity)();
        let (cluster, node) =
            identity.ok_or_else(|| Error::unavailable("the node", "it is starting"))?;
        let query = OverviewQuery { shards: true };
        match self.ask(Request::Overview(query)).await? {
            Response::Overview(overview) => Ok(picture(&overview, cluster, node)),
            other => Err(Error::Internal(format!("the overview is {other:?}"))),
        }
    }

    async fn explain(&self, shard: ShardId) -> Result<Json> {
        match self.ask(Request::Explain(shard)).await? {
            Response::Explain(explained) => Ok(explanation(&explained)),
            other => Err(Error::Internal(format!("the explanation is {other:?}"))),
        }
    }

    async fn ask(&self, request: Request) -> Result<Response> {
        let call = Call {
            request,
            deadline: ANSWER_MAX,
            forwarded: false,
            cluster: None,
        };
        self.service.call(call).await
    }
}
