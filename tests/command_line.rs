//! What is typed, what comes out, and the exit code: against a cluster in memory. Time is tokio's, and
//! paused, except where a thread reads a file: a paused clock does not move while one runs.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod fake;
mod placing;

use std::collections::BTreeMap;
use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Parser;
use fake::Cluster;
use fake::Fault;
use fake::START_MS;
use quorate::cli;
use quorate::cli::Cli;
use quorate::cli::world::World;
use quorate::client::RequestIds;
use quorate::error::Error;
use quorate::server::grpc::Doors;
use quorate::server::grpc::Stop;
use serde_json::Value as Json;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The faults that tests/mutants puts in are in programs that it builds, and in no other.
#[cfg(not(quorate_mutants))]
#[test]
fn no_fault_can_be_put_into_the_program() {
    let program = std::fs::read(env!("CARGO_BIN_EXE_quorate")).unwrap();
    let words = String::from_utf8_lossy(&program);
    assert!(
        words.contains("the log was lost"),
        "its words are there to be found"
    );
    assert!(!words.contains("QUORATE_MUTANT"));
}

/// What a verb has left behind.
#[derive(Debug, Clone, PartialEq)]
struct Said {
    code: u8,
    out: Vec<u8>,
    err: String,
}

impl Said {
    fn out(&self) -> &str {
        std::str::from_utf8(&self.out).unwrap()
    }

    fn json(&self) -> Json {
        serde_json::from_slice(&self.out).unwrap()
    }

    fn json_lines(&self) -> Vec<Json> {
        let lines = self.out().lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn ids() -> RequestIds {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    RequestIds::new(
        || START_MS,
        || {
            let mut bytes = [0; 10];
            bytes[2..].copy_from_slice(&COUNT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
            bytes
        },
    )
}

/// Types `quorate --endpoints n1..n3 WORDS` with `stdin` at hand.
async fn typed_with(
    cluster: &Cluster,
    words: &[&str],
    stdin: impl Read + Send + 'static,
    stdout: impl Write + Send + 'static,
) -> (u8, String) {
    let quorate = ["quorate", "--endpoints", "n1:7400,n2:7400,n3:7400"];
    let cli = match Cli::try_parse_from(quorate.iter().chain(words)) {
        Ok(cli) => cli,
        Err(error) => return (cli::usage_exit_code(&error), error.to_string()),
    };
    let err = Shared::default();
    let cluster = cluster.clone();
    let channel = move || Arc::new(cluster.clone()) as _;
    let world = World::new(channel, ids, stdin, stdout, err.clone());
    let code = cli::run(cli, world)
        .await
        .map_or_else(|failure| failure.exit_code, |()| 0);
    let err = String::from_utf8(err.0.lock().unwrap().clone()).unwrap();
    (code, err)
}

async fn typed_reading(cluster: &Cluster, words: &[&str], stdin: &[u8]) -> Said {
    let out = Shared::default();
    let stdin = std::io::Cursor::new(stdin.to_vec());
    let (code, err) = typed_with(cluster, words, stdin, out.clone()).await;
    let out = out.0.lock().unwrap().clone();
    Said { code, out, err }
}

async fn typed(cluster: &Cluster, words: &[&str]) -> Said {
    typed_reading(cluster, words, b"").await
}

fn values(cluster: &Cluster) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let state = cluster.state();
    let pairs = state.data.iter();
    pairs
        .map(|(key, found)| (key.to_vec(), found.value.to_vec()))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn get_prints_the_value_alone_byte_for_byte() {
    let cluster = Cluster::new();
    let value = [0, 0xff, b'\n', b'x'];
    cluster.store("a", value.to_vec());
    let said = typed(&cluster, &["get", "a"]).await;
    assert_eq!(
        (said.code, &said.out[..], said.err.as_str()),
        (0, &value[..], "")
    );
}

#[tokio::test(start_paused = true)]
async fn get_as_json_says_version_and_as_of() {
    let cluster = Cluster::new();
    cluster.store("a", "hello");
    let version = cluster.state().stamp.0.to_string();
    let said = typed(&cluster, &["get", "a", "-o", "json"]).await.json();
    assert_eq!(said["key"], "a");
    assert_eq!(said["value"], "hello");
    assert_eq!(said["version"], version);
    assert!(said["as_of"].as_str().unwrap() > version.as_str());

    cluster.store(vec![0xff], vec![0xfe]);
    let said = typed(&cluster, &["get", "--hex", "ff", "-o", "json"])
        .await
        .json();
    assert_eq!(
        (&said["key_base64"], &said["value_base64"]),
        (&json!("/w=="), &json!("/g=="))
    );
}

#[tokio::test(start_paused = true)]
async fn each_way_to_fail_has_its_exit_code() {
    let cluster = Cluster::new();
    let missing = typed(&cluster, &["get", "a"]).await;
    assert_eq!((missing.code, missing.out.len()), (4, 0));
    assert_eq!(missing.err, "error: key a is not there\n");

    let refused = typed(&cluster, &["get", ""]).await;
    assert_eq!(refused.code, 3);
    assert_eq!(refused.err, "error: key: is empty; nothing was done\n");

    cluster.fault(1, Fault::Refuse(Error::NoSpace { free_bytes: 5 }));
    assert_eq!(typed(&cluster, &["put", "a", "b"]).await.code, 1);

    cluster.state().down.extend([1, 2, 3]);
    let unreachable = typed(&cluster, &["get", "a", "--timeout", "1s"]).await;
    assert_eq!(unreachable.code, 2);
    assert!(
        unreachable.err.contains("connection refused"),
        "{}",
        unreachable.err
    );
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_understood_exits_with_three_and_help_with_none() {
    let cluster = Cluster::new();
    let wrong: &[&[&str]] = &[
        &[],
        &["fetch", "a"],
        &["get"],
        &["get", "a", "--unknown"],
        &["get", "a", "-o", "yaml"],
        &["get", "a", "--timeout", "soon"],
        &["get", "--hex", "xyz"],
        &["get", "a", "--cluster", "12"],
        &["put", "a"],
        &["put", "a", "b", "--file", "c"],
        &["cas", "a", "b"],
        &["cas", "a", "b", "--expect", "c", "--expect-absent"],
        &["delete"],
        &["delete", "a", "--prefix", "b"],
        &["scan", "--start", "b", "--end", "a"],
        &["shard", "transfer-leader", "shard"],
        &["shard", "split"],
        &["shard", "split", "s1"],
        &["shard", "split", "s1", "--at", "m", "--at", "n"],
        &["shard", "split", "s1", "--at", "m", "--count", "2"],
        &["shard", "split", "--prefix", "p"],
        &["shard", "split", "--prefix", "p", "--count", "1"],
        &["shard", "split", "s0", "--at", "m"],
        &["shard", "list", "--prefix", "x", "--hex"],
        &["shard", "explain"],
        &["shard", "explain", "xyz", "--hex"],
        &["shard", "merge"],
        &["shard", "merge", "s0"],
        &["shard", "merge", "xyz", "--hex"],
        &["shard", "move", "s1", "--from", "n1"],
        &["shard", "move", "placement", "--from", "n1", "--to", "n2"],
        &["node", "drain"],
        &["node", "drain", "first"],
        &["node", "decommission", "4x"],
        &["operator", "cancel"],
        &["placement", "set", "split_bytes"],
        &["placement", "set", "split_bytes", ""],
        &["placement", "reset"],
        &["rule", "set"],
        &["rule", "set", "a", "--replicas", "2"],
        &["rule", "set", "a", "--require", "zone"],
        &["rule", "set", "a", "--spread", "a b"],
        &[
            "rule",
            "set",
            "a",
            "--require",
            "zone=a",
            "--forbid",
            "zone=a",
        ],
        &["rule", "set", "a", "--file", "b"],
        &["rule", "set", "--file", "b", "--replicas", "3"],
        &["rule", "set", "--file", "/there/is/no/such/file"],
        &["rule", "delete"],
        &["keyspace", "create"],
        &["keyspace", "create", "A"],
        &["keyspace", "create", "a", "--buckets", "4"],
        &["keyspace", "create", "a", "--hash", "--buckets", "3"],
        &["keyspace", "create", "a", "--hash", "--parts", "257"],
        &["keyspace", "create", "a", "--prefix", ""],
        &["keyspace", "delete"],
        &["get", "a", "--keyspace", "A"],
        &["bench", "write"],
        &["put", "a", "b", "--request-id", "00"],
        &["import", "/there/is/no/such/file"],
        &["export", "--resume"],
    ];
    for words in wrong {
        let said = typed(&cluster, words).await;
        assert_eq!(said.code, 3, "{words:?}: {}", said.err);
        assert!(!said.err.is_empty() && said.out.is_empty());
    }
    assert_eq!(cluster.take_calls(), "");
    for words in [["--help"], ["--version"]] {
        assert_eq!(typed(&cluster, &words).await.code, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn values_come_from_the_argument_standard_input_or_a_file() {
    let cluster = Cluster::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [1, 2, 0xff]).unwrap();
    let path = file.path().to_str().unwrap();
    assert_eq!(typed(&cluster, &["put", "a", "text"]).await.code, 0);
    assert_eq!(
        typed_reading(&cluster, &["put", "b", "-"], b"in\n")
            .await
            .code,
        0
    );
    assert_eq!(typed(&cluster, &["put", "c", "--file", path]).await.code, 0);
    assert_eq!(
        typed(&cluster, &["put", "--hex", "0001", "ff"]).await.code,
        0
    );
    assert_eq!(
        typed(&cluster, &["put", "--base64", "AAI=", "/g=="])
            .await
            .code,
        0
    );
    let expected: [(&[u8], &[u8]); 5] = [
        (b"\x00\x01", b"\xff"),
        (b"\x00\x02", b"\xfe"),
        (b"a", b"text"),
        (b"b", b"in\n"),
        (b"c", b"\x01\x02\xff"),
    ];
    let expected = expected.map(|(key, value)| (key.to_vec(), value.to_vec()));
    assert_eq!(values(&cluster), BTreeMap::from(expected));
}

#[tokio::test(start_paused = true)]
async fn a_value_that_is_too_long_is_refused_before_it_is_sent() {
    let cluster = Cluster::new();
    let long = vec![b'x'; 1024 * 1024 + 1];
    let said = typed_reading(&cluster, &["put", "a", "-"], &long).await;
    assert_eq!((said.code, cluster.take_calls().as_str()), (3, ""));
    assert!(said.err.contains("at most 1048576 bytes"), "{}", said.err);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_names_the_request_id_with_which_it_can_be_learned() {
    let cluster = Cluster::new();
    cluster.state().every_write = Some(Fault::LoseAnswer);
    let said = typed(&cluster, &["put", "a", "b", "-o", "json"]).await;
    let error: Json = serde_json::from_str(&said.err).unwrap();
    assert_eq!((said.code, &error["exit_code"]), (1, &json!(1)));
    let id = error["request_id"].as_str().unwrap();
    cluster.state().every_write = None;
    let said = typed(
        &cluster,
        &["put", "a", "b", "--request-id", id, "-o", "json"],
    )
    .await;
    assert_eq!((said.code, &said.json()["request_id"]), (0, &json!(id)));
    assert_eq!(cluster.state().versions.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn cas_stores_only_what_was_expected() {
    let cluster = Cluster::new();
    let absent = ["cas", "a", "1", "--expect-absent"];
    assert_eq!(typed(&cluster, &absent).await.code, 0);
    let again = typed(&cluster, &absent).await;
    assert_eq!(again.code, 1);
    assert!(
        again
            .err
            .contains("key a is not as expected: its version is"),
        "{}",
        again.err
    );
    assert_eq!(
        typed(&cluster, &["cas", "a", "2", "--expect", "1"])
            .await
            .code,
        0
    );
    assert_eq!(
        typed(&cluster, &["cas", "a", "3", "--expect", "1"])
            .await
            .code,
        1
    );
    let version = typed(&cluster, &["get", "a", "-o", "json"]).await.json()["version"].clone();
    let words = [
        "cas",
        "a",
        "4",
        "--expect-version",
        version.as_str().unwrap(),
    ];
    assert_eq!(typed(&cluster, &words).await.code, 0);
    assert_eq!(
        typed(&cluster, &["cas", "b", "1", "--expect-present"])
            .await
            .code,
        1
    );
    assert_eq!(typed(&cluster, &["get", "a"]).await.out(), "4");
}

#[tokio::test(start_paused = true)]
async fn delete_removes_a_key_or_a_range_and_says_how_many() {
    let cluster = Cluster::new();
    for number in 0..25_000 {
        cluster.store(format!("p/{number:05}"), "v");
    }
    cluster.store("q", "v");
    assert_eq!(typed(&cluster, &["delete", "q"]).await.out(), "deleted 1\n");
    assert_eq!(
        typed(&cluster, &["delete", "q"]).await.out(),
        "nothing changed\n"
    );
    let said = typed(&cluster, &["delete", "--prefix", "p/", "-o", "json"]).await;
    assert_eq!(said.json(), json!({ "deleted": 25_000 }));
    assert!(cluster.state().data.is_empty());
}

#[tokio::test(start_paused = true)]
async fn scan_lists_keys_in_order_and_says_when_there_is_more() {
    let cluster = Cluster::new();
    cluster.store("a", "1");
    cluster.store("b\t", vec![0xff]);
    cluster.store("c", "3");
    let said = typed(&cluster, &["scan", "--limit", "2"]).await;
    assert_eq!(said.out(), "a\t1\nb\\t\t\\xff\n");
    assert!(said.err.contains("there may be more"), "{}", said.err);
    let said = typed(
        &cluster,
        &["scan", "--reverse", "--keys-only", "--start", "b"],
    )
    .await;
    assert_eq!((said.out(), said.err.as_str()), ("c\nb\\t\n", ""));
    let lines = typed(&cluster, &["scan", "-o", "json", "--prefix", "b"])
        .await
        .json_lines();
    assert_eq!(lines.len(), 1);
    assert_eq!(
        (&lines[0]["key"], &lines[0]["value_base64"]),
        (&json!("b\t"), &json!("/w=="))
    );
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_goes_away_ends_the_verb_quietly() {
    struct Gone;
    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let cluster = Cluster::new();
    cluster.store("a", "1");
    for words in [["scan"], ["export"]] {
        let ended = typed_with(&cluster, &words, std::io::empty(), Gone).await;
        assert_eq!(ended, (0, String::new()), "{words:?}");
    }
}

fn write_lines(path: &Path, lines: &[String]) {
    std::fs::write(path, lines.join("\n") + "\n").unwrap();
}

fn lines(count: usize) -> Vec<String> {
    let line = |number| json!({ "key": format!("k{number:04}"), "value": format!("v{number}") });
    (1..=count).map(|number| line(number).to_string()).collect()
}

#[tokio::test]
async fn what_is_imported_is_exported_record_by_record() {
    let directory = tempfile::tempdir().unwrap();
    let (input, output) = (directory.path().join("in"), directory.path().join("out"));
    let mut all = lines(2_500);
    all.push(r#"{"key_base64":"/w==","value":"grüß\u0000\n"}"#.to_string());
    all.insert(7, r#"{"key":"k0007b","value_base64":"/wA="}"#.to_string());
    write_lines(&input, &all);
    let cluster = Cluster::new();
    let (input, output) = (input.to_str().unwrap(), output.to_str().unwrap());
    let said = typed(&cluster, &["import", input]).await;
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(
        said.out().starts_with("imported 2502 records"),
        "{}",
        said.out()
    );
    assert!(
        (2..=64).contains(&cluster.state().busiest),
        "{}",
        cluster.state().busiest
    );

    let said = typed(&cluster, &["export", output]).await;
    assert_eq!((said.code, said.out.len()), (0, 0), "{}", said.err);
    assert!(
        said.err.starts_with("exported 2502 records"),
        "{}",
        said.err
    );
    let parse = |line: &str| serde_json::from_str::<Json>(line).unwrap();
    let expected: Vec<Json> = all.iter().map(|line| parse(line)).collect();
    let exported = std::fs::read_to_string(output).unwrap();
    assert_eq!(exported.lines().map(parse).collect::<Vec<Json>>(), expected);
    assert!(!Path::new(&format!("{output}.partial")).exists());
}

#[tokio::test]
async fn bad_lines_of_a_file_are_named_before_anything_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let input = directory.path().join("in");
    let mut all = lines(5);
    all[1] = "{".to_string();
    all[3] = r#"{"key":"","value":"x"}"#.to_string();
    write_lines(&input, &all);
    let cluster = Cluster::new();
    let said = typed(&cluster, &["import", input.to_str().unwrap()]).await;
    assert_eq!((said.code, cluster.take_calls().as_str()), (3, ""));
    assert!(
        said.err.contains("nothing was imported; line 2: "),
        "{}",
        said.err
    );
    assert!(
        said.err.contains("; line 4: the key is empty"),
        "{}",
        said.err
    );
}

#[tokio::test]
async fn standard_input_is_refused_at_the_bad_line_and_goes_on_there() {
    let cluster = Cluster::new();
    let mut all = lines(200);
    all[149] = "no JSON".to_string();
    let said = typed_reading(&cluster, &["import", "-"], all.join("\n").as_bytes()).await;
    assert_eq!(said.code, 3);
    let end = "149 records are stored, go on with: quorate import - --from-line 150\n";
    assert!(said.err.ends_with(end), "{}", said.err);
    all[149] = lines(150)[149].clone();
    let words = ["import", "-", "--from-line", "150"];
    let said = typed_reading(&cluster, &words, all.join("\n").as_bytes()).await;
    assert!(
        said.out().starts_with("imported 51 records"),
        "{}{}",
        said.out(),
        said.err
    );
    assert_eq!(cluster.state().data.len(), 200);
}

#[tokio::test]
async fn an_import_that_stops_goes_on_without_losing_a_record() {
    let cluster = Cluster::new();
    cluster.state().puts_left = Some(700);
    let all = lines(1_000).join("\n");
    let said = typed_reading(&cluster, &["import", "-"], all.as_bytes()).await;
    assert_eq!(said.code, 3);
    assert!(
        said.err.contains("700 records are stored, go on with"),
        "{}",
        said.err
    );
    let from = said.err.trim().rsplit(' ').next().unwrap();
    let from_number: usize = from.parse().unwrap();
    assert!((1..=701).contains(&from_number), "{from}");
    cluster.state().puts_left = None;
    let words = ["import", "-", "--from-line", from];
    let said = typed_reading(&cluster, &words, all.as_bytes()).await;
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(cluster.state().data.len(), 1_000);
}

#[tokio::test]
async fn an_import_outlasts_a_leaderless_time() {
    let cluster = Cluster::new();
    cluster.state().leader = None;
    let election = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        cluster.state().leader = Some(2);
    };
    let all = lines(300).join("\n");
    let (said, ()) = tokio::join!(
        typed_reading(&cluster, &["import", "-"], all.as_bytes()),
        election
    );
    assert_eq!(
        (said.code, cluster.state().data.len()),
        (0, 300),
        "{}",
        said.err
    );
}

#[tokio::test]
async fn of_two_records_of_one_key_the_later_one_stays() {
    let cluster = Cluster::new();
    // The first put of the key gets no answer and is sent again when the others could be done.
    cluster.state().hang_value = Some("1".into());
    let input = [("a", "1"), ("b", "x"), ("a", "2"), ("a", "3")];
    let line = |(key, value)| json!({ "key": key, "value": value }).to_string();
    let input = input.map(line).join("\n");
    let said = typed_reading(&cluster, &["import", "-"], input.as_bytes()).await;
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(values(&cluster)[b"a".as_slice()], b"3");
}

#[tokio::test]
async fn an_import_keeps_to_its_rate() {
    let cluster = Cluster::new();
    let all = lines(300).join("\n");
    let started = tokio::time::Instant::now();
    let words = ["import", "-", "--rate", "500", "-o", "json"];
    let said = typed_reading(&cluster, &words, all.as_bytes()).await;
    assert_eq!((said.code, &said.json()["records"]), (0, &json!(300)));
    let seconds = started.elapsed().as_secs_f64();
    assert!((0.5..3.0).contains(&seconds), "{seconds}");
}

#[tokio::test(start_paused = true)]
async fn an_export_that_stops_goes_on_where_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("out");
    let output = output.to_str().unwrap();
    let cluster = Cluster::new();
    for number in 0..2_500 {
        cluster.store(format!("k{number:04}"), "v");
    }
    cluster.state().pages_left = Some(1);
    let said = typed(&cluster, &["export", output]).await;
    assert_eq!(said.code, 1, "{}", said.err);
    assert!(
        said.err
            .contains(&format!("go on with: quorate export {output} --resume"))
    );
    assert!(!Path::new(output).exists());
    let partial = format!("{output}.partial");
    let first = records_in(&std::fs::read(&partial).unwrap());
    // A crash may have torn the last line.
    let mut torn = std::fs::OpenOptions::new()
        .append(true)
        .open(&partial)
        .unwrap();
    torn.write_all(b"{\"key\":\"k9").unwrap();
    cluster.state().pages_left = None;
    let said = typed(&cluster, &["export", output, "--resume"]).await;
    assert_eq!(said.code, 0, "{}", said.err);
    let all = records_in(&std::fs::read(output).unwrap());
    assert_eq!(all.len(), 2_500);
    assert!(all.starts_with(&first) && all.is_sorted());
}

fn records_in(bytes: &[u8]) -> Vec<String> {
    let text = std::str::from_utf8(bytes).unwrap();
    text.lines().map(String::from).collect()
}

#[tokio::test(start_paused = true)]
async fn an_export_to_standard_output_says_with_which_key_it_goes_on() {
    let cluster = Cluster::new();
    for number in 0..1_500 {
        cluster.store(format!("k{number:04}"), "v");
    }
    cluster.state().pages_left = Some(1);
    let said = typed(&cluster, &["export", "--prefix", "k"]).await;
    assert_eq!(said.code, 1, "{}", said.err);
    let expected = "go on with: quorate export --hex --start 6b3039393900 --end 6c\n";
    assert!(said.err.ends_with(expected), "{}", said.err);
    assert_eq!(records_in(&said.out).len(), 1_000);
    cluster.state().pages_left = None;
    let words = ["export", "--hex", "--start", "6b3039393900", "--end", "6c"];
    assert_eq!(records_in(&typed(&cluster, &words).await.out).len(), 500);
}

#[tokio::test(start_paused = true)]
async fn status_shows_nodes_and_groups_and_judges_them() {
    let cluster = Cluster::new();
    let said = typed(&cluster, &["status"]).await;
    assert_eq!(said.code, 0, "{}", said.err);
    for word in [
        "placement",
        "s1",
        "n3",
        "leader",
        "follower",
        "1.00 GiB",
        "c1c1c1c1",
    ] {
        assert!(said.out().contains(word), "{word} in\n{}", said.out());
    }
    let json = typed(&cluster, &["status", "-o", "json"]).await.json();
    assert_eq!(
        (&json["healthy"], &json["nodes"][2]["id"]),
        (&json!(true), &json!(3))
    );
    assert_eq!(json["groups"][1]["leader"], 1);
    assert_eq!(json["groups"][1]["replicas"][2]["lag"], 2);

    cluster.state().leader = None;
    let said = typed(&cluster, &["status"]).await;
    assert_eq!(
        (said.code, said.err.as_str()),
        (1, "error: no leader: placement, s1\n")
    );
    cluster.state().down.extend([1, 2, 3]);
    assert_eq!(typed(&cluster, &["status"]).await.code, 2);
}

#[tokio::test(start_paused = true)]
async fn nodes_are_listed_whether_they_answer_or_not() {
    let cluster = Cluster::new();
    cluster.state().down.insert(2);
    cluster.state().not_ready.insert(3);
    let said = typed(&cluster, &["node", "list"]).await;
    assert_eq!(said.code, 0, "{}", said.err);
    let rows: Vec<Vec<&str>> = said
        .out()
        .lines()
        .skip(1)
        .map(|line| {
            line.split("  ")
                .map(str::trim)
                .filter(|cell| !cell.is_empty())
                .collect()
        })
        .collect();
    let begins = |row: usize, cells: &[&str]| assert_eq!(&rows[row][..cells.len()], cells);
    begins(0, &["n1", "n1", "ready", "2", "2", "1m 1s"]);
    begins(1, &["n2", "n2", "no answer", "-", "-", "-"]);
    begins(2, &["n3", "n3", "not ready", "2", "0", "1m 1s"]);
    assert_eq!(rows[1].last(), Some(&"02".repeat(16).as_str()));
    assert!(said.err.contains("n2"), "{}", said.err);

    let json = typed(&cluster, &["node", "list", "-o", "json"])
        .await
        .json();
    assert_eq!(json[0]["leaders"], 2);
    assert_eq!(
        (&json[1]["id"], &json[1]["reachable"]),
        (&json!(2), &json!(false))
    );
    assert_eq!(json[1]["groups"], json!(null));
    assert_eq!(json[2]["node_address"], "n3:7401");
}

#[tokio::test(start_paused = true)]
async fn status_waits_until_there_are_leaders() {
    let cluster = Cluster::new();
    cluster.state().down.extend([1, 2, 3]);
    let start = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        cluster.state().down.clear();
    };
    let (said, ()) = tokio::join!(typed(&cluster, &["status", "--wait", "20"]), start);
    assert_eq!(said.code, 0, "{}", said.err);
    cluster.state().leader = None;
    let started = tokio::time::Instant::now();
    assert_eq!(typed(&cluster, &["status", "--wait", "3"]).await.code, 1);
    assert!((2..5).contains(&started.elapsed().as_secs()));
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_cannot_be_asked_is_proved_by_a_read() {
    let cluster = Cluster::new();
    // From here node 1 cannot be reached; the others reach it.
    for _ in 0..20 {
        cluster.fault(1, Fault::Refuse(Error::unavailable("n1:7400", "no route")));
    }
    assert_eq!(typed(&cluster, &["status"]).await.code, 0);
    cluster.state().down.insert(1);
    let said = typed(&cluster, &["status", "--timeout", "1s"]).await;
    assert_eq!(said.code, 1, "{}", said.err);
}

#[tokio::test(start_paused = true)]
async fn health_asks_the_first_endpoint_alone() {
    let cluster = Cluster::new();
    assert_eq!(typed(&cluster, &["health"]).await.out(), "ready\n");
    assert_eq!(cluster.take_calls(), "n1 status");
    cluster.state().not_ready.insert(1);
    assert_eq!(typed(&cluster, &["health"]).await.code, 1);
    cluster.state().down.insert(1);
    assert_eq!(typed(&cluster, &["health"]).await.code, 2);
}

#[tokio::test(start_paused = true)]
async fn transfer_moves_the_leader() {
    let cluster = Cluster::new();
    let words = ["shard", "transfer-leader", "s1", "--to", "n2"];
    let said = typed(&cluster, &words).await;
    assert_eq!(
        (said.code, cluster.state().leader),
        (0, Some(2)),
        "{}",
        said.err
    );
    assert_eq!(said.out(), "the leadership of s1 goes to n2\n");
}

#[tokio::test(start_paused = true)]
async fn shard_list_shows_shards_in_the_order_of_their_keys() {
    let cluster = Cluster::new();
    cluster.split("m");
    cluster.split("c");
    cluster.state().leaders.insert(2, 3);
    let said = typed(&cluster, &["shard", "list"]).await;
    assert_eq!(said.code, 0, "{}", said.err);
    let lines = said.out().lines();
    let rows: Vec<Vec<&str>> = lines
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0][..4], ["SHARD", "START", "END", "LEADER"]);
    assert_eq!(rows[1][..4], ["s1", "-", "c", "n1"]);
    assert_eq!(rows[2][..4], ["s3", "c", "m", "n1"]);
    assert_eq!(rows[3][..4], ["s2", "m", "-", "n3"]);
    let replicas = ["n1", "follower,", "n2", "follower,", "n3", "leader", "2.1"];
    assert_eq!(rows[3][4..], replicas);

    let words = ["shard", "list", "--prefix", "b", "-o", "json"];
    let shards = typed(&cluster, &words).await.json()["shards"].clone();
    let expected = json!([{
        "shard": "s1", "start": "", "end": "c", "epoch": { "bounds": 3, "conf": 1 }, "leader": 1,
        "replicas": [
            { "replica": 11, "node": 1, "role": "leader" },
            { "replica": 12, "node": 2, "role": "follower" },
            { "replica": 13, "node": 3, "role": "follower" },
        ],
    }]);
    assert_eq!(shards, expected);

    cluster.state().down.insert(2);
    let said = typed(&cluster, &["shard", "list"]).await;
    assert!(said.out().contains("n2 silent") && said.err.starts_with("n2: "));
}

fn starts(cluster: &Cluster) -> Vec<String> {
    let state = cluster.state();
    let starts = state.shards.iter().map(|shard| &shard.range.start);
    starts.map(|key| key.escape_ascii().to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn shard_split_cuts_where_it_is_told_and_only_once() {
    let cluster = Cluster::new();
    let words = ["shard", "split", "s1", "--at", "m"];
    let said = typed(&cluster, &words).await;
    assert_eq!(
        (said.code, said.out()),
        (0, "s1 ends and s2 begins at m\n"),
        "{}",
        said.err
    );
    let again = typed(&cluster, &words).await;
    let existed = "1 of the cuts were there already\n";
    assert_eq!((again.code, again.out()), (0, existed));
    let said = typed(&cluster, &["shard", "split", "s2", "--hex", "--at", "63"]).await;
    assert_eq!(said.code, 3);
    assert!(said.err.contains("that key is in s1, not in s2"));
    assert_eq!(starts(&cluster), ["", "m"]);
}

#[tokio::test(start_paused = true)]
async fn shard_split_makes_several_cuts_in_whatever_shards_the_keys_are() {
    let cluster = Cluster::new();
    let said = typed(&cluster, &["shard", "split", "--at", "p", "--at", "c"]).await;
    let cuts = "s1 ends and s2 begins at p\ns1 ends and s3 begins at c\n";
    assert_eq!((said.code, said.out()), (0, cuts), "{}", said.err);
    assert_eq!(starts(&cluster), ["", "c", "p"]);
}

#[tokio::test(start_paused = true)]
async fn shard_split_cuts_a_prefix_evenly_across_shards() {
    let cluster = Cluster::new();
    for at in ["p", "p\u{40}", "q"] {
        cluster.split(at);
    }
    let words = ["shard", "split", "--prefix", "p", "--count", "4"];
    let said = typed(&cluster, &[&words[..], &["-o", "json"]].concat()).await;
    assert_eq!(said.code, 0, "{}", said.err);
    let said = said.json();
    assert_eq!(
        (&said["cuts"].as_array().unwrap().len(), &said["existed"]),
        (&2, &json!(1))
    );
    assert_eq!(said["cuts"][0]["right"]["end"], "q");
    assert_eq!(starts(&cluster), ["", "p", "p@", "p\\x80", "p\\xc0", "q"]);
    let again = typed(&cluster, &words).await;
    assert_eq!(again.out(), "3 of the cuts were there already\n");
}

#[tokio::test(start_paused = true)]
async fn a_cut_whose_answer_is_lost_is_found_to_be_made() {
    let cluster = Cluster::new();
    // The first call to node 1 asks for the state of the cluster.
    cluster.fault(1, Fault::Pass);
    cluster.fault(1, Fault::LoseAnswer);
    let said = typed(&cluster, &["shard", "split", "s1", "--at", "m"]).await;
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(starts(&cluster), ["", "m"]);
}

#[tokio::test(start_paused = true)]
async fn scan_and_delete_go_over_all_shards() {
    let cluster = Cluster::new();
    for number in 0..2_500 {
        cluster.store(format!("k{number:04}"), "v");
    }
    for at in ["k0300", "k0301", "k1800", "x"] {
        cluster.split(at);
    }
    for words in [
        &["scan", "--limit", "0", "--keys-only"][..],
        &["scan", "--limit", "0", "--keys-only", "--reverse"],
    ] {
        let said = typed(&cluster, words).await;
        let keys: Vec<&str> = said.out().lines().collect();
        assert_eq!((keys.len(), said.err.as_str()), (2_500, ""), "{words:?}");
        assert!(keys.is_sorted() || keys.iter().rev().is_sorted());
    }
    let said = typed(&cluster, &["delete", "--prefix", "k0"]).await;
    assert_eq!(said.out(), "deleted 1000\n");
    let said = typed(&cluster, &["delete", "--all"]).await;
    assert_eq!(said.out(), "deleted 1500\n");
}

#[tokio::test]
async fn an_import_writes_shard_by_shard_and_outlives_a_split() {
    let cluster = Cluster::new();
    cluster.split("k0500");
    let all = lines(1_000).join("\n");
    let words = ["import", "-"];
    let said = typed_reading(&cluster, &words, all.as_bytes()).await;
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(cluster.state().data.len(), 1_000);
    let writes = cluster.take_calls().matches("write").count();
    assert!(writes < 700, "{writes} writes for 1000 records");

    // Writes of what was one shard are refused, and their records stored one by one.
    let splits = async {
        for number in 1..10 {
            while cluster.state().versions.len() < 1_000 + 100 * number {
                tokio::task::yield_now().await;
            }
            // Through the middle of what is being stored.
            cluster.split(format!("k{:04}", 100 * number + 64));
        }
        std::future::pending::<Said>().await
    };
    let said = tokio::select! {
        said = typed_reading(&cluster, &words, all.as_bytes()) => said,
        said = splits => said,
    };
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(cluster.state().versions.len(), 2_000);
    assert!(cluster.state().shards.len() > 5);
}

#[tokio::test(start_paused = true)]
async fn an_export_has_every_key_once_whatever_splits_meanwhile() {
    let cluster = Cluster::new();
    for number in 0..4_500 {
        cluster.store(format!("k{number:04}"), "v");
    }
    for (page, at) in [(1, "k0500"), (1, "k1700"), (2, "k1701"), (3, "k4000")] {
        let mut state = cluster.state();
        state.cuts.entry(page).or_default().push(at.into());
    }
    let said = typed(&cluster, &["export"]).await;
    assert_eq!(said.code, 0, "{}", said.err);
    let records = records_in(&said.out);
    assert_eq!((records.len(), cluster.state().shards.len()), (4_500, 5));
    assert!(records.is_sorted_by(|one, other| one < other));
}

#[tokio::test(start_paused = true)]
async fn a_node_of_another_cluster_is_refused() {
    let cluster = Cluster::new();
    let other = "00000000000000000000000000000001";
    let said = typed(&cluster, &["put", "a", "b", "--cluster", other]).await;
    assert_eq!(said.code, 3, "{}", said.err);
    let own = fake::cluster_id().to_string();
    assert_eq!(
        typed(&cluster, &["put", "a", "b", "--cluster", &own])
            .await
            .code,
        0
    );
}

#[tokio::test]
async fn bench_reports_rates_and_percentiles() {
    let cluster = Cluster::new();
    for kind in ["put", "get", "mixed", "scan"] {
        let words = [
            "bench",
            kind,
            "--clients",
            "8",
            "--duration",
            "150ms",
            "--keys",
            "50",
            "-o",
            "json",
        ];
        let said = typed(&cluster, &words).await;
        assert_eq!(said.code, 0, "{}", said.err);
        let report = said.json();
        assert!(report["ops"].as_u64().unwrap() > 0);
        assert_eq!(
            (&report["clients"], &report["errors"]),
            (&json!(8), &json!({}))
        );
        let row = if kind == "mixed" { "get" } else { kind };
        assert!(report[row]["p99_us"].as_u64() >= report[row]["p50_us"].as_u64());
    }
    assert_eq!(cluster.state().data.len(), 50);
    let words = ["bench", "put", "--duration", "50ms"];
    let said = typed(&cluster, &words).await;
    assert!(said.out().contains("P99 MS"), "{}", said.out());
    cluster.state().down.extend([1, 2, 3]);
    let words = ["bench", "put", "--duration", "50ms", "--timeout", "100ms"];
    assert_eq!(typed(&cluster, &words).await.code, 2);
}

#[tokio::test]
async fn completions_know_the_verbs() {
    let said = typed(&Cluster::new(), &["completions", "bash"]).await;
    assert!(said.out().contains("transfer") && said.out().contains("--from-line"));
}

/// The same cluster behind real ports, and the binary itself.
struct Served {
    cluster: Cluster,
    endpoints: String,
    stop: CancellationToken,
    doors: Vec<tokio::task::JoinHandle<quorate::error::Result<()>>>,
    _ready: watch::Sender<bool>,
}

impl Served {
    async fn start() -> Served {
        let cluster = Cluster::new();
        let stop = CancellationToken::new();
        let (ready, is_ready) = watch::channel(true);
        let mut doors = Vec::new();
        for node in 1..=3 {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            cluster.state().addresses[node - 1] = address;
            let door = Doors::new(cluster.service(node as u64), || ids().next());
            let stop = Stop {
                token: stop.clone(),
                grace: Duration::from_secs(1),
            };
            let is_ready = is_ready.clone();
            let serve = async move { door.serve_clients(listener, is_ready, stop).await };
            doors.push(tokio::spawn(serve));
        }
        let endpoints = cluster.state().addresses.join(",");
        Served {
            cluster,
            endpoints,
            stop,
            doors,
            _ready: ready,
        }
    }

    async fn quorate(&self, words: &[&str]) -> Said {
        let output = Command::new(env!("CARGO_BIN_EXE_quorate"))
            .args(words)
            .env("QUORATE_ENDPOINTS", &self.endpoints)
            .stdin(std::process::Stdio::null())
            .output()
            .await
            .unwrap();
        Said {
            code: u8::try_from(output.status.code().unwrap()).unwrap(),
            out: output.stdout,
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    async fn end(self) {
        self.stop.cancel();
        for door in self.doors {
            door.await.unwrap().unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_binary_speaks_over_real_ports() {
    let served = Served::start().await;
    let put = served.quorate(&["put", "greeting", "hello"]).await;
    assert_eq!(put.code, 0, "{}", put.err);
    assert_eq!(served.quorate(&["get", "greeting"]).await.out, b"hello");
    let missing = served.quorate(&["get", "nothing"]).await;
    assert_eq!(
        (missing.code, missing.err.as_str()),
        (4, "error: key nothing is not there\n")
    );
    assert_eq!(served.quorate(&["get"]).await.code, 3);
    assert_eq!(served.quorate(&["get", ""]).await.code, 3);
    let cas = served
        .quorate(&["cas", "greeting", "x", "--expect", "bye"])
        .await;
    assert_eq!(cas.code, 1, "{}", cas.err);
    let status = served.quorate(&["status"]).await;
    assert_eq!(status.code, 0, "{}", status.err);
    assert_eq!(served.quorate(&["health"]).await.out, b"ready\n");
    let bench = [
        "bench",
        "mixed",
        "--duration",
        "200ms",
        "--keys",
        "100",
        "-o",
        "json",
    ];
    let bench = served.quorate(&bench).await;
    assert_eq!(
        (bench.code, &bench.json()["errors"]),
        (0, &json!({})),
        "{}",
        bench.err
    );
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_binary_imports_and_exports_over_real_ports() {
    let served = Served::start().await;
    let directory = tempfile::tempdir().unwrap();
    let (input, output) = (directory.path().join("in"), directory.path().join("out"));
    let all = lines(3_000);
    write_lines(&input, &all);
    let import = served.quorate(&["import", input.to_str().unwrap()]).await;
    assert_eq!(import.code, 0, "{}", import.err);
    let export = served.quorate(&["export", output.to_str().unwrap()]).await;
    assert_eq!(export.code, 0, "{}", export.err);
    assert_eq!(records_in(&std::fs::read(&output).unwrap()), all);
    assert_eq!(served.cluster.state().versions.len(), 3_000);
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_is_interrupted_says_at_once_how_to_go_on() {
    let served = Served::start().await;
    let directory = tempfile::tempdir().unwrap();
    let input = directory.path().join("in");
    write_lines(&input, &lines(2_000));
    let import = Command::new(env!("CARGO_BIN_EXE_quorate"))
        .arg("import")
        .arg(&input)
        .args(["--rate", "200"])
        .env("QUORATE_ENDPOINTS", &served.endpoints)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    while served.cluster.state().versions.len() < 20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let id = import.id().unwrap().to_string();
    Command::new("kill")
        .args(["-INT", &id])
        .status()
        .await
        .unwrap();
    let output = import.wait_with_output().await.unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.starts_with("error: interrupted; "), "{err}");
    let from: usize = err.trim().rsplit(' ').next().unwrap().parse().unwrap();
    let stored = served.cluster.state().versions.len();
    assert!(stored < 1_000 && from <= stored + 1, "{stored}: {err}");
    served.end().await;
}

#[tokio::test]
async fn the_binary_exits_with_two_where_nobody_listens() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let words = ["get", "a", "--endpoints", &address, "--timeout", "500ms"];
    let output = Command::new(env!("CARGO_BIN_EXE_quorate"))
        .args(words)
        .output()
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[tokio::test(start_paused = true)]
async fn keys_of_a_keyspace_are_apart_from_all_others() {
    let cluster = Cluster::new();
    let said = typed(&cluster, &["keyspace", "create", "users"]).await;
    let line = "created keyspace users: ordered, behind users/\n";
    assert_eq!((said.code, said.out()), (0, line));
    let hash = ["keyspace", "create", "orders", "--hash", "--buckets", "4"];
    let said = typed(&cluster, &hash).await;
    let line = "created keyspace orders: 4 buckets in 4 parts, behind orders/\n";
    assert_eq!(said.out(), line);
    assert_eq!(typed(&cluster, &hash).await.code, 3, "it is taken");
    typed(&cluster, &["put", "a", "raw"]).await;
    for keyspace in ["users", "orders"] {
        let put = ["put", "--keyspace", keyspace, "a", keyspace];
        assert_eq!(typed(&cluster, &put).await.code, 0);
        let got = typed(&cluster, &["get", "--keyspace", keyspace, "a"]).await;
        assert_eq!(got.out(), keyspace);
        let scan = ["scan", "--keyspace", keyspace];
        let scan = typed(&cluster, &scan).await;
        assert_eq!(scan.out(), format!("a\t{keyspace}\n"));
        assert_eq!(scan.err.contains("bucket by bucket"), keyspace == "orders");
    }
    assert_eq!(typed(&cluster, &["get", "a"]).await.out(), "raw");
    let keys: Vec<Vec<u8>> = values(&cluster).into_keys().collect();
    assert_eq!(keys.len(), 3);
    assert_eq!(keys[2], b"users/a");
    let cas = [
        "cas",
        "--keyspace",
        "users",
        "a",
        "new",
        "--expect",
        "users",
    ];
    assert_eq!(typed(&cluster, &cas).await.code, 0);
    assert_eq!(typed(&cluster, &cas).await.code, 1, "it is another now");

    let delete = ["keyspace", "delete", "orders"];
    assert_eq!(typed(&cluster, &delete).await.code, 3, "it has keys");
    let all = ["delete", "--keyspace", "orders", "--all"];
    assert_eq!(typed(&cluster, &all).await.out(), "deleted 1\n");
    let said = typed(&cluster, &delete).await;
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    let listed = typed(&cluster, &["keyspace", "list", "-o", "json"])
        .await
        .json();
    let users = json!({ "name": "users", "prefix": "users/", "kind": "ordered", "deleted": false });
    assert_eq!(listed, json!({ "keyspaces": [users] }));
    let listed = typed(&cluster, &["keyspace", "list", "--deleted"]).await;
    let row = " orders  orders/  hash     4        4      deleted ";
    assert!(listed.out().contains(row), "{}", listed.out());
    let gone = typed(&cluster, &["get", "--keyspace", "orders", "a"]).await;
    assert_eq!(gone.code, 4);
    assert!(
        gone.err.contains("there is no keyspace orders"),
        "{}",
        gone.err
    );
}
