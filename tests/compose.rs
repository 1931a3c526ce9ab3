//! The containers of `deploy/compose.yaml`: the machine's own package index is imported into 16 shards
//! while the container of the node that leads most of them is killed again and again, and comes out as
//! it went in. And the container of the leader stands still, loses its network, and has its volume filled
//! up, under writers.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::io::BufWriter;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::time::Duration;

use quorate::testkit::processes::ready_status;
use quorate::testkit::workload::Nodes;
use support::READY;

const SHARDS: usize = 16;
const KILLS: usize = 10;
/// Kills must fall into the import; a whole index then takes a bit over a minute.
const RECORDS_PER_SECOND: &str = "700";
const IMPORT_MAX: Duration = Duration::from_secs(480);
/// Not those of `deploy/up`, which may be in use.
const PORTS: [u16; 3] = [17_400, 17_410, 17_420];

#[tokio::test(flavor = "multi_thread")]
async fn an_index_imported_under_kills_of_the_leader_comes_out_as_it_went_in() {
    if let Some(why) = cannot_run() {
        support::skip("QUORATE_REQUIRE_DOCKER", "compose", &why);
        return;
    }
    let records = package_index();
    let directory = tempfile::tempdir().unwrap();
    let input = directory.path().join("input.jsonl");
    write_lines(&input, &records);
    println!(
        "{} records, {} bytes",
        records.len(),
        fs::metadata(&input).unwrap().len()
    );

    let mut containers = Containers::up_on(None);
    split(&records).await;
    let import = quorate(&["import", "--rate", RECORDS_PER_SECOND])
        .arg(&input)
        .spawn();
    let mut import = Import(import.unwrap());
    let began = tokio::time::Instant::now();
    let mut kills = 0;
    let ended = loop {
        if let Some(ended) = import.0.try_wait().unwrap() {
            break ended;
        }
        if began.elapsed() > IMPORT_MAX {
            panic!("the import still runs after {IMPORT_MAX:?} and {kills} kills");
        }
        containers.kill_and_restart_leader().await;
        kills += 1;
    };
    println!("{kills} kills of the leader in {:?}", began.elapsed());
    assert!(ended.success(), "the import ended with {ended}");
    assert!(kills >= KILLS, "{kills} kills are too few: lower the rate");

    let output = directory.path().join("output.jsonl");
    let exported = quorate(&["export"]).arg(&output).status().unwrap();
    assert!(exported.success(), "the export ended with {exported}");
    compare(&records, &read_lines(&output));
}

/// What a container has to bear.
#[derive(Debug, Clone, Copy)]
enum Hurt {
    Pause,
    Disconnect,
    FillUp,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_stands_still_or_has_no_network_or_no_room_loses_nothing() {
    if let Some(why) = cannot_run() {
        support::skip("QUORATE_REQUIRE_DOCKER", "compose", &why);
        return;
    }
    let small = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    fs::write(small.path(), SMALL_VOLUMES).unwrap();
    let containers = Containers::up_on(Some(small.path()));
    let volumes = Volumes::of_running();
    for (seed, hurt) in [Hurt::Pause, Hurt::Disconnect, Hurt::FillUp]
        .into_iter()
        .enumerate()
    {
        let leader = containers.leader().await;
        let id = containers.id(leader);
        let prefix = format!("{hurt:?}/");
        let writers = support::write(&containers.nodes, &prefix, seed as u64);
        support::answered(&writers, 100, "before").await;
        match hurt {
            Hurt::Pause => docker(&["pause", &id]),
            Hurt::Disconnect => docker(&["network", "disconnect", NETWORK, &id]),
            Hurt::FillUp => volumes.fill(leader),
        }
        if let Hurt::FillUp = hurt {
            led_elsewhere(&containers, leader).await;
        }
        let began = tokio::time::Instant::now();
        support::answered(&writers, 200, "with one container hurt").await;
        println!("{hurt:?}: 200 writes in {:?}", began.elapsed());
        match hurt {
            Hurt::Pause => docker(&["unpause", &id]),
            Hurt::Disconnect => {
                let name = format!("n{}", leader + 1);
                docker(&["network", "connect", "--alias", &name, NETWORK, &id]);
            }
            Hurt::FillUp => volumes.make_room(leader),
        }
        containers.leader().await;
        support::answered(&writers, 100, "when it is well again").await;
        support::stop_and_verify(writers, &prefix, &containers.nodes).await;
    }
}

/// Until a node that has no room leads no shard any more.
async fn led_elsewhere(containers: &Containers, node: usize) {
    let deadline = tokio::time::Instant::now() + READY;
    while leads(&containers.nodes, node).await {
        let now = tokio::time::Instant::now();
        assert!(now < deadline, "n{} leads on without room", node + 1);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn leads(nodes: &Nodes, node: usize) -> bool {
    match ready_status(&nodes[node]).await {
        Ok(status) => support::shard(&status).role == "leader",
        Err(_) => true,
    }
}

/// The network that compose makes.
const NETWORK: &str = "quorate-test_quorate";

/// Volumes in memory, which can be filled up.
const SMALL_VOLUMES: &str = r#"
volumes:
  n1: &small
    driver: local
    driver_opts: { type: tmpfs, device: tmpfs, o: "size=1g" }
  n2: *small
  n3: *small
"#;

/// Where the nodes' volumes are mounted.
struct Volumes {
    mounted: Vec<PathBuf>,
}

impl Volumes {
    /// The volumes of containers that run.
    fn of_running() -> Volumes {
        let mounted = (1..=PORTS.len()).map(|number| {
            let name = format!("quorate-test_n{number}");
            let place = ["volume", "inspect", "--format", "{{.Mountpoint}}", &name];
            let place = Command::new("docker").args(place).output().unwrap();
            PathBuf::from(String::from_utf8(place.stdout).unwrap().trim())
        });
        Volumes {
            mounted: mounted.collect(),
        }
    }

    /// Fills a node's volume up to its last byte.
    fn fill(&self, node: usize) {
        let mut ballast = File::create(self.ballast(node)).unwrap();
        let block = vec![0xee; 1024 * 1024];
        while ballast.write_all(&block).is_ok() {}
    }

    fn make_room(&self, node: usize) {
        fs::remove_file(self.ballast(node)).unwrap();
    }

    fn ballast(&self, node: usize) -> PathBuf {
        self.mounted[node].join("ballast")
    }
}

/// Cuts the one shard into [`SHARDS`] with about as many records each.
async fn split(records: &Records) {
    let each = records.len() / SHARDS;
    let firsts = records.keys().step_by(each).skip(1).take(SHARDS - 1);
    let mut split = quorate(&["shard", "split"]);
    for first in firsts {
        split.args(["--at", str::from_utf8(first).unwrap()]);
    }
    let done = split.output().unwrap();
    assert!(
        done.status.success(),
        "the split ended with {}",
        said(&done)
    );
    // The last one is listed when it has been reported, within a second or two.
    let deadline = tokio::time::Instant::now() + READY;
    loop {
        let list = quorate(&["shard", "list", "-o", "json"]).output().unwrap();
        let list: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
        match list["shards"].as_array().unwrap().len() {
            SHARDS => return,
            _ => assert!(tokio::time::Instant::now() < deadline, "{list}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The import; killed when the test ends before it.
struct Import(Child);

impl Drop for Import {
    fn drop(&mut self) {
        // One that has ended by itself cannot be killed, and need not.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Why there can be no containers here.
fn cannot_run() -> Option<String> {
    if support::skipped("compose") {
        return Some("QUORATE_SKIP names it".to_owned());
    }
    let works = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output();
        output.is_ok_and(|output| output.status.success())
    };
    if !works("docker", "info") {
        return Some("`docker info` fails".to_owned());
    }
    if !works("apt-cache", "dumpavail") {
        return Some("there is no package index (`apt-cache dumpavail`)".to_owned());
    }
    None
}

/// The program with its endpoints set.
fn quorate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command
        .args(arguments)
        .env("QUORATE_ENDPOINTS", addresses().join(","));
    command
}

fn addresses() -> Vec<String> {
    PORTS.map(|port| format!("127.0.0.1:{port}")).to_vec()
}

type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// Every record of the package index by package, version and architecture.
fn package_index() -> Records {
    let index = Command::new("apt-cache").arg("dumpavail").output().unwrap();
    let records = records_of(&index.stdout);
    assert!(
        records.len() > 10_000,
        "only {} packages: run `apt-get update` first",
        records.len()
    );
    records
}

/// Records are separated by empty lines. Of two with the same key the first counts.
fn records_of(index: &[u8]) -> Records {
    let mut records = Records::new();
    let mut rest = index;
    while !rest.is_empty() {
        let end = rest.windows(2).position(|pair| pair == b"\n\n");
        let (record, behind) = match end {
            Some(end) => (&rest[..=end], &rest[end + 2..]),
            None => (rest, &rest[rest.len()..]),
        };
        rest = behind;
        let fields = ["Package", "Version", "Architecture"].map(|name| field(record, name));
        if let [Some(package), Some(version), Some(architecture)] = fields {
            let key = [package, version, architecture].join(&b' ');
            records.entry(key).or_insert_with(|| record.to_vec());
        }
    }
    records
}

fn field<'a>(record: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let start = format!("{name}: ");
    let mut lines = record.split(|byte| *byte == b'\n');
    lines.find_map(|line| line.strip_prefix(start.as_bytes()))
}

fn write_lines(path: &Path, records: &Records) {
    let mut file = BufWriter::new(File::create(path).unwrap());
    for (key, value) in records {
        let mut line = serde_json::Map::new();
        put_bytes(&mut line, "key", key);
        put_bytes(&mut line, "value", value);
        serde_json::to_writer(&mut file, &line).unwrap();
        file.write_all(b"\n").unwrap();
    }
    file.flush().unwrap();
}

/// As text, or in base64 where the bytes are none.
fn put_bytes(line: &mut serde_json::Map<String, serde_json::Value>, name: &str, bytes: &[u8]) {
    use base64::Engine;
    match std::str::from_utf8(bytes) {
        Ok(text) => line.insert(name.to_owned(), text.into()),
        Err(_) => {
            let encoded = base64::engine::general_purpose::STANDARD.encode(bytes);
            line.insert(format!("{name}_base64"), encoded.into())
        }
    };
}

fn read_lines(path: &Path) -> Records {
    let text = fs::read_to_string(path).unwrap();
    let mut records = Records::new();
    for line in text.lines() {
        let line: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).unwrap();
        let key = get_bytes(&line, "key");
        let before = records.insert(key, get_bytes(&line, "value"));
        assert!(before.is_none(), "a key was exported twice: {line:?}");
    }
    records
}

fn get_bytes(line: &serde_json::Map<String, serde_json::Value>, name: &str) -> Vec<u8> {
    use base64::Engine;
    if let Some(text) = line.get(name) {
        return text.as_str().unwrap().as_bytes().to_vec();
    }
    let encoded = line[&format!("{name}_base64")].as_str().unwrap();
    base64::engine::general_purpose::STANDARD
        .decode(encoded)
        .unwrap()
}

fn compare(input: &Records, output: &Records) {
    let differs = |(key, value): &(&Vec<u8>, &Vec<u8>)| output.get(*key) != Some(*value);
    let missing: Vec<_> = input.iter().filter(differs).map(|(key, _)| key).collect();
    let added: Vec<_> = output
        .keys()
        .filter(|key| !input.contains_key(*key))
        .collect();
    let show = |keys: &[&Vec<u8>]| {
        let some = keys
            .iter()
            .take(5)
            .map(|key| key.escape_ascii().to_string());
        some.collect::<Vec<_>>().join(", ")
    };
    assert!(
        missing.is_empty() && added.is_empty(),
        "{} of {} records are missing or differ ({}), {} were never imported ({})",
        missing.len(),
        input.len(),
        show(&missing),
        added.len(),
        show(&added)
    );
}

/// The compose cluster, with a project name and ports of its own. Dropping it removes it.
struct Containers {
    nodes: Nodes,
    _alone: File,
}

impl Containers {
    /// Brings them up, as deploy/compose.yaml says and, where it says something else, the file given.
    fn up_on(extra: Option<&Path>) -> Containers {
        // Made first, so that what a failed start leaves behind is removed too.
        let containers = Containers {
            nodes: support::connect::connect(&addresses()),
            _alone: support::alone(),
        };
        down();
        let mut up = deploy_command("deploy/up");
        up.envs(extra.map(|file| ("QUORATE_COMPOSE_EXTRA", file)));
        let up = up.output().unwrap();
        assert!(up.status.success(), "deploy/up: {}", said(&up));
        println!("{}", said(&up));
        containers
    }

    /// Waits until all are ready, kills the container of the node that leads most shards and starts it again.
    async fn kill_and_restart_leader(&mut self) {
        let leader = self.leader().await;
        let id = self.id(leader);
        docker(&["kill", "--signal", "KILL", &id]);
        // Long enough for the others to elect and go on.
        tokio::time::sleep(Duration::from_secs(2)).await;
        docker(&["start", &id]);
        self.leader().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    /// The container of a node.
    fn id(&self, node: usize) -> String {
        let id = compose(&["ps", "--quiet", &format!("n{}", node + 1)]);
        String::from_utf8(id.stdout).unwrap().trim().to_owned()
    }

    /// The node that leads most shards, once all three are ready.
    async fn leader(&self) -> usize {
        let deadline = tokio::time::Instant::now() + READY;
        loop {
            let mut leading = BTreeMap::new();
            let mut missing = Vec::new();
            for node in &self.nodes {
                match ready_status(node).await {
                    Ok(status) => {
                        let groups = status.groups.iter();
                        let led = groups.filter(|group| group.role == "leader").count();
                        leading.insert(support::number(&status), led);
                    }
                    Err(why) => missing.push(why),
                }
            }
            let most = leading.into_iter().max_by_key(|(_, led)| *led);
            if let Some((leader, _)) = most.filter(|_| missing.is_empty()) {
                return leader;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "not ready after {READY:?}: {missing:?}\n{}",
                said(&compose(&["logs", "--tail", "40"]))
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", said(&compose(&["logs", "--tail", "60"])));
        }
        down();
    }
}

fn down() {
    let down = deploy_command("deploy/down")
        .arg("--volumes")
        .output()
        .unwrap();
    if !down.status.success() {
        eprintln!("deploy/down: {}", said(&down));
    }
}

fn compose(arguments: &[&str]) -> Output {
    let script = ". deploy/compose.sh; compose \"$@\"";
    deploy_command("bash")
        .args(["-c", script, "compose"])
        .args(arguments)
        .output()
        .unwrap()
}

fn deploy_command(program: &str) -> Command {
    let profile = std::env::var("QUORATE_PROFILE").unwrap_or_else(|_| "dev".to_owned());
    let mut command = Command::new(program);
    command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("COMPOSE_PROJECT_NAME", "quorate-test")
        .env("QUORATE_TAG", "test")
        .env("QUORATE_TOKEN", "compose-test")
        .env("QUORATE_PROFILE", profile);
    for (number, port) in PORTS.iter().enumerate() {
        command.env(format!("QUORATE_PORT_{}", number + 1), port.to_string());
    }
    command
}

fn docker(arguments: &[&str]) {
    let output = Command::new("docker").args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "docker {arguments:?}: {}",
        said(&output)
    );
}

fn said(output: &Output) -> String {
    let parts =
        [&output.stdout, &output.stderr].map(|part| String::from_utf8_lossy(part).into_owned());
    parts.join("\n")
}

#[test]
fn an_index_goes_through_json_lines_unchanged() {
    let index = b"Package: a\nVersion: 1\nArchitecture: all\nDescription: \xff\n more\n\n\
        Package: b\nVersion: 2:1\nArchitecture: amd64\n\nPackage: broken\n\n";
    let records = records_of(index);
    let keys: Vec<_> = records
        .keys()
        .map(|key| key.escape_ascii().to_string())
        .collect();
    assert_eq!(keys, ["a 1 all", "b 2:1 amd64"]);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("lines");
    write_lines(&file, &records);
    compare(&records, &read_lines(&file));
}
