//! Options come from defaults, file, environment and flags, the later over the earlier, and what
//! makes no sense is refused by name. Also here: what the HTTP port answers.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use clap::CommandFactory;
use clap::Parser;
use quorate::config;
use quorate::config::ConfigError;
use quorate::config::flags::ServeFlags;
use quorate::server::handler::Handler;
use quorate::server::http;
use quorate::server::http::Check;
use quorate::server::http::console::Source;
use quorate::server::options::Bytes;
use quorate::server::options::LogFormat;
use quorate::server::options::Options;
use quorate::telemetry::metrics;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;

#[derive(Parser)]
struct Serve {
    #[command(flatten)]
    flags: ServeFlags,
}

fn flags(line: &str) -> ServeFlags {
    let words = std::iter::once("serve").chain(line.split_whitespace());
    Serve::try_parse_from(words).unwrap().flags
}

fn load(line: &str) -> Result<Options, ConfigError> {
    config::load(&flags(line))
}

struct Toml {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

fn toml(text: &str) -> Toml {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("quorate.toml");
    std::fs::write(&path, text).unwrap();
    Toml { _dir: dir, path }
}

fn load_with(file: &Toml, line: &str) -> Result<Options, ConfigError> {
    load(&format!("--config {} {line}", file.path.display()))
}

fn refused(line: &str, parts: &[&str]) {
    let error = load(line).unwrap_err().to_string();
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

#[test]
fn nothing_given_means_the_defaults() {
    assert_eq!(load("").unwrap(), Options::default());
    let options = Options::default();
    assert_eq!(options.client_address(), "127.0.0.1:7400");
    assert_eq!(options.node_address(), "127.0.0.1:7401");
}

#[test]
fn every_option_is_a_flag_and_the_help_tells_its_true_default() {
    let command = Serve::command();
    let tree = serde_json::to_value(Options::default()).unwrap();
    for key in tree.as_object().unwrap().keys() {
        let mut arguments = command.get_arguments();
        let argument = arguments.find(|argument| argument.get_id() == key.as_str());
        let argument = argument.unwrap_or_else(|| panic!("{key} has no flag"));
        let flag = key.replace('_', "-");
        assert_eq!(argument.get_long(), Some(flag.as_str()));
        let variable = format!("QUORATE_{}", key.to_uppercase());
        assert_eq!(argument.get_env().unwrap(), variable.as_str());
        let help = argument.get_help().unwrap().to_string();
        let Some((_, told)) = help.rsplit_once("[default: ") else {
            continue;
        };
        // Some defaults are told in words.
        if let Some(value) = told
            .strip_suffix(']')
            .filter(|value| !value.contains(' ') && !value.starts_with('-'))
        {
            let given = load(&format!("--{flag} {value}")).unwrap();
            assert_eq!(given, Options::default(), "--{flag} {value}");
        }
    }
}

#[test]
fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
    let file = toml(
        "name = \"n2\"\nheartbeat_interval = \"50ms\"\ncache_bytes = \"64MiB\"\nlog_spare_segments = 4\n\
         initial_cluster = \"n2=h2:7401,n3=h3:7401\"\nlog_format = \"json\"\nlog_segment_bytes = 16777216\n",
    );
    let options = load_with(&file, "--name n3 --cache-bytes 1GiB").unwrap();
    assert_eq!(options.name, "n3");
    assert_eq!(options.cache_bytes, Bytes::mebi(1024));
    assert_eq!(options.heartbeat_interval, Duration::from_millis(50));
    assert_eq!(options.log_spare_segments, 4);
    assert_eq!(options.log_segment_bytes, Bytes::mebi(16));
    assert_eq!(options.log_format, LogFormat::Json);
    assert_eq!(options.node_address(), "h3:7401");
    assert_eq!(
        options.election_timeout_min,
        Options::default().election_timeout_min
    );
}

/// The environment belongs to the whole process, so this one asks a process of its own.
#[test]
fn the_environment_is_above_the_file_and_below_the_flags() {
    const CHILD: &str = "A_CHILD_OF_THE_CONFIG_TEST";
    if let Ok(path) = std::env::var(CHILD) {
        let options = load(&format!("--config {path} --initial-cluster-token flag")).unwrap();
        assert_eq!(options.name, "variable");
        assert_eq!(options.initial_cluster_token, "flag");
        assert_eq!(options.drain_timeout, Duration::from_secs(7));
        assert_eq!(options.log, "debug");
        assert!(options.insecure);
        return;
    }
    let file = toml("name = \"file\"\ndrain_timeout = \"7s\"\ninitial_cluster_token = \"file\"\n");
    let child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "the_environment_is_above_the_file_and_below_the_flags",
        ])
        .env(CHILD, &file.path)
        .env("QUORATE_NAME", "variable")
        .env("QUORATE_INITIAL_CLUSTER_TOKEN", "variable")
        .env("QUORATE_LOG", "debug")
        .env("QUORATE_INSECURE", "true")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success() && said.contains("1 passed"),
        "{said}"
    );
}

#[test]
fn an_unknown_key_is_named_with_the_one_that_was_meant() {
    let file = toml("hearbeat_interval = \"50ms\"\n");
    let error = load_with(&file, "").unwrap_err();
    assert!(matches!(error, ConfigError::UnknownKey { .. }), "{error}");
    let said = error.to_string();
    assert!(
        said.contains("\"hearbeat_interval\"; did you mean \"heartbeat_interval\"?"),
        "{said}"
    );
    let error = load_with(&toml("data-dir = \"x\"\n"), "").unwrap_err();
    assert!(
        error.to_string().contains("did you mean \"data_dir\"?"),
        "{error}"
    );
    let error = load_with(&toml("colour = 1\n"), "").unwrap_err();
    assert!(!error.to_string().contains("did you mean"), "{error}");
}

#[test]
fn an_unknown_flag_is_refused() {
    let error = Serve::try_parse_from(["serve", "--data-directory", "x"]).err();
    let said = error.unwrap().to_string();
    assert!(said.contains("--data-dir"), "{said}");
}

#[test]
fn a_file_that_does_not_read_is_refused_with_its_name() {
    let error = load("--config /no/such/file.toml").unwrap_err();
    assert!(matches!(error, ConfigError::File { .. }), "{error}");
    let error = load_with(&toml("name = = 1\n"), "").unwrap_err();
    assert!(matches!(error, ConfigError::File { .. }), "{error}");
    let file = toml("heartbeat_interval = 50\n");
    let error = load_with(&file, "").unwrap_err().to_string();
    assert!(
        error.contains("heartbeat_interval") && error.contains("quorate.toml"),
        "{error}"
    );
}

#[test]
fn a_value_that_does_not_read_is_refused_with_its_key() {
    refused(
        "--heartbeat-interval soon",
        &["heartbeat_interval: ", "\"soon\" is no duration"],
    );
    refused(
        "--cache-bytes many",
        &["cache_bytes: ", "\"many\" is no size"],
    );
    refused("--listen-client here", &["listen_client: "]);
    refused(
        "--initial-cluster n1",
        &["initial_cluster: ", "\"n1\" is not name=host:port"],
    );
    refused(
        "--initial-cluster n1=a:1,n2=a:1",
        &["n2=a:1 repeats a name or address of n1=a:1"],
    );
    refused("--join nowhere", &["join: ", "is not host:port"]);
    refused("--log-format xml", &["log_format: "]);
}

#[test]
fn options_that_make_no_sense_together_are_refused_with_the_way_out() {
    refused(
        "--listen-client 0.0.0.0:7400",
        &["listen_client", "--insecure"],
    );
    refused(
        "--listen-client 0.0.0.0:7400 --insecure",
        &["listen_client", "set advertise_client"],
    );
    refused(
        "--listen-http 127.0.0.1:7400",
        &["listen_http", "listen_client has the same"],
    );
    refused(
        "--election-timeout-min 299ms",
        &["election_timeout_min", "three heartbeats (300ms)"],
    );
    refused(
        "--election-timeout-max 300ms",
        &["election_timeout_max", "election_timeout_min (300ms)"],
    );
    refused("--name two/words", &["name", "letters"]);
    refused(
        "--name n9 --initial-cluster n1=a:1",
        &["initial_cluster", "does not name this node (n9)"],
    );
    refused(
        "--initial-cluster n1=a:1 --advertise-node b:1",
        &["advertise_node", "n1=a:1"],
    );
    refused("--initial-cluster n1=a:1 --join b:1", &["join", "either"]);
    refused(
        "--log-segment-bytes 1MiB",
        &["log_segment_bytes", "at least 8MiB"],
    );
}

#[test]
fn open_addresses_are_taken_with_what_they_need() {
    let options = load(
        "--insecure --listen-client 0.0.0.0:7400 --advertise-client here:7400 --listen-node 0.0.0.0:7401 \
         --initial-cluster n1=here:7401",
    )
    .unwrap();
    assert_eq!(options.client_address(), "here:7400");
    assert_eq!(options.node_address(), "here:7401");
    // Ports that the system chooses, as tests do.
    load("--listen-client 127.0.0.1:0 --listen-node 127.0.0.1:0 --listen-http 127.0.0.1:0")
        .unwrap();
}

fn check(name: &str, ok: bool, detail: &str) -> Check {
    Check {
        name: name.into(),
        ok,
        detail: detail.into(),
    }
}

async fn ask(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split_whitespace().nth(1).unwrap();
    (status.parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn the_http_port_says_what_holds_and_stops_when_told() {
    let state = Arc::new(Mutex::new(vec![
        check("log", true, "synced 2 ms ago"),
        check("placement", false, "the Raft task has ended"),
    ]));
    let shown = Arc::clone(&state);
    let checks = move || shown.lock().unwrap().clone();
    metrics::install();
    metrics::groups(2, 1, 1);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let console = Source {
        service: Arc::new(Handler::new()),
        identity: Arc::new(|| None),
    };
    let served = tokio::spawn(http::serve(listener, Arc::new(checks), console, async {
        stopped.await.unwrap();
    }));

    assert_eq!(ask(address, "/livez").await, (200, "ok\n".into()));
    let failed = "[-] placement failed: the Raft task has ended\nnot ready\n";
    assert_eq!(ask(address, "/readyz").await, (503, failed.into()));
    let all = format!("[+] log ok: synced 2 ms ago\n{failed}");
    assert_eq!(ask(address, "/readyz?verbose").await, (503, all));
    let (status, _) = ask(address, "/readyz?verbose&exclude=placement").await;
    assert_eq!(status, 200);
    state.lock().unwrap()[1].ok = true;
    assert_eq!(ask(address, "/readyz").await, (200, "ok\n".into()));

    let (status, text) = ask(address, "/metrics").await;
    assert_eq!(status, 200);
    assert!(text.contains("quorate_groups_failed_count 1"), "{text}");
    assert!(text.contains("process_resident_memory_bytes "), "{text}");
    assert_eq!(ask(address, "/nothing").await.0, 404);

    let (status, page) = ask(address, "/console/").await;
    assert!(status == 200 && page.contains("console.js"), "{page}");
    assert_eq!(ask(address, "/console").await.0, 308);
    for (file, begins) in [("console.js", "// The console"), ("console.css", "/*")] {
        let (status, text) = ask(address, &format!("/console/{file}")).await;
        assert!(status == 200 && text.starts_with(begins), "{file}");
    }
    let (status, text) = ask(address, "/console/state.json").await;
    assert!(status == 503 && text.contains("it is starting"), "{text}");
    assert_eq!(ask(address, "/console/explain.json?shard=x").await.0, 400);

    stop.send(()).unwrap();
    served.await.unwrap().unwrap();
}
