//! The verbs for placement: what is typed, what comes out, and what they wait for.

use std::time::Duration;

use quorate::types::ShardId;
use quorate::types::node::Duty;
use serde_json::Value as Json;
use serde_json::json;
use tokio::process::Command;

use super::Said;
use super::Served;
use super::fake::Cluster;
use super::typed;

/// Four nodes and three shards; none of them has a replica on node 4 but the first, if wanted.
fn four_nodes(first_on_four: bool) -> Cluster {
    let cluster = Cluster::new();
    cluster.split("m");
    cluster.split("t");
    cluster.add_node();
    if first_on_four {
        cluster.state().move_replica(ShardId(1), 3, 4);
    }
    cluster
}

fn check(said: &Said, code: u8, out: &str, err: &[&str]) {
    assert_eq!((said.code, said.out()), (code, out), "{}", said.err);
    for part in err {
        assert!(said.err.contains(part), "{part:?} in {:?}", said.err);
    }
}

fn duty(cluster: &Cluster, node: u64) -> Option<Duty> {
    cluster.state().placement.duties.get(&node).copied()
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_until_the_node_leads_no_shard() {
    let cluster = four_nodes(false);
    let said = typed(&cluster, &["node", "drain", "n1"]).await;
    let err = ["3 leaders left", "n1 still leads placement's group"];
    check(&said, 0, "n1 leads no shard any more\n", &err);
    assert_eq!(duty(&cluster, 1), Some(Duty::Drain));
    let leaders = cluster.state().leaders.clone();
    assert!(leaders.len() == 3 && leaders.values().all(|leader| *leader != 1));

    let said = typed(&cluster, &["node", "drain", "2", "-o", "json"]).await;
    let expected = json!({ "node": 2, "duty": "drain", "leaders": 0 });
    assert_eq!((said.code, said.json()), (0, expected), "{}", said.err);
}

#[tokio::test(start_paused = true)]
async fn a_decommission_ends_when_it_is_safe() {
    let cluster = four_nodes(true);
    let said = typed(&cluster, &["node", "decommission", "n4"]).await;
    let out = "n4 holds nothing any more: it is safe to switch it off and delete its data\n";
    check(&said, 0, out, &["1 replica and 0 leaders left"]);
    let again = typed(&cluster, &["node", "decommission", "n4", "-o", "json"]).await;
    assert_eq!(
        (again.code, &again.json()["safe"]),
        (0, &json!(true)),
        "{}",
        again.err
    );
}

#[tokio::test(start_paused = true)]
async fn a_replica_of_placement_is_waited_for_too() {
    let cluster = four_nodes(false);
    let said = typed(&cluster, &["node", "decommission", "n1"]).await;
    let out = "n1 holds nothing any more: it is safe to switch it off and delete its data\n";
    check(&said, 0, out, &["3 replicas and 3 leaders left"]);
    assert!(cluster.state().placement.left.contains(&1));
    cluster.state().leader = Some(2);
    cluster.state().down.insert(1);
    let said = typed(&cluster, &["node", "decommission", "n1"]).await;
    check(&said, 1, "", &["n1 does not answer"]);
}

#[tokio::test(start_paused = true)]
async fn what_placement_has_not_heard_of_is_not_taken_for_nothing() {
    let cluster = four_nodes(true);
    cluster.state().placement.has_heard_nothing = true;
    cluster.state().placement.held = Some("for the test".to_owned());
    let lets_go = async {
        tokio::time::sleep(Duration::from_secs(15)).await;
        cluster.state().placement.held = None;
    };
    let words = ["node", "decommission", "n4"];
    let (said, ()) = tokio::join!(typed(&cluster, &words), lets_go);
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(said.err.contains("1 replica and 0 leaders left"));
}

#[tokio::test(start_paused = true)]
async fn a_standstill_is_explained_and_outwaited() {
    let cluster = four_nodes(false);
    cluster.state().placement.held = Some("no node for a replica".to_owned());
    let lets_go = async {
        tokio::time::sleep(Duration::from_secs(35)).await;
        cluster.state().placement.held = None;
    };
    let words = ["node", "drain", "n1"];
    let (said, ()) = tokio::join!(typed(&cluster, &words), lets_go);
    let why = "nothing has changed for a while: s1: vacate: held: no node for a replica\n";
    check(&said, 0, "n1 leads no shard any more\n", &[why]);
    assert_eq!(said.err.matches(why).count(), 1, "{}", said.err);

    typed(&cluster, &["placement", "pause"]).await;
    let resume = async {
        tokio::time::sleep(Duration::from_secs(15)).await;
        typed(&cluster, &["placement", "resume"]).await
    };
    let words = ["node", "drain", "n2"];
    let (said, _) = tokio::join!(typed(&cluster, &words), resume);
    check(
        &said,
        0,
        "n2 leads no shard any more\n",
        &["placement is paused"],
    );
}

#[tokio::test(start_paused = true)]
async fn an_unknown_node_is_refused_at_once() {
    let cluster = Cluster::new();
    for verb in ["drain", "decommission", "recommission"] {
        let said = typed(&cluster, &["node", verb, "n9"]).await;
        let err = "error: there is no n9; there are n1, n2, n3\n";
        check(&said, 4, "", &[err]);
        assert_eq!(cluster.take_calls(), "n1 overview");
    }
}

#[tokio::test(start_paused = true)]
async fn a_duty_is_given_without_waiting_and_taken_back() {
    let cluster = Cluster::new();
    let words = ["node", "decommission", "n3", "--no-wait"];
    let said = typed(&cluster, &words).await;
    check(&said, 0, "n3 is to hold nothing\n", &[]);
    assert_eq!(duty(&cluster, 3), Some(Duty::Leave));
    let said = typed(&cluster, &["node", "drain", "n3", "--no-wait"]).await;
    check(&said, 0, "n3 is to lead nothing\n", &[]);
    let said = typed(&cluster, &["node", "recommission", "n3", "-o", "json"]).await;
    assert_eq!(said.json(), json!({ "node": 3, "duty": "serve" }));
    assert_eq!(duty(&cluster, 3), Some(Duty::Serve));
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_told_that_somebody_has_taken_it_back() {
    let cluster = Cluster::new();
    cluster.state().placement.held = Some("for the test".to_owned());
    let takes_back = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        typed(&cluster, &["node", "recommission", "n1"]).await
    };
    let words = ["node", "drain", "n1"];
    let (said, _) = tokio::join!(typed(&cluster, &words), takes_back);
    check(&said, 1, "", &["somebody has changed what is wanted of n1"]);
}

#[tokio::test(start_paused = true)]
async fn waiting_outlasts_a_change_of_placements_leader_but_not_its_end() {
    let cluster = Cluster::new();
    cluster.state().placement.held = Some("for the test".to_owned());
    let election = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        cluster.state().leader = None;
        tokio::time::sleep(Duration::from_secs(25)).await;
        cluster.state().leader = Some(1);
        cluster.state().placement.held = None;
    };
    let words = ["node", "drain", "n1"];
    let (said, ()) = tokio::join!(typed(&cluster, &words), election);
    let err = ["placement does not answer, still waiting: "];
    check(&said, 0, "n1 leads no shard any more\n", &err);

    cluster.state().placement.held = Some("for the test".to_owned());
    let end = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        cluster.state().leader = None;
    };
    let words = ["node", "decommission", "n2"];
    let (said, ()) = tokio::join!(typed(&cluster, &words), end);
    let err = "it has no leader; n2 is still to hold nothing; take that back with: quorate node recommission n2\n";
    check(&said, 2, "", &[err]);
}

#[tokio::test(start_paused = true)]
async fn nodes_are_listed_with_what_placement_says_of_them() {
    let cluster = Cluster::new();
    cluster.state().down.insert(2);
    typed(&cluster, &["node", "drain", "n3", "--no-wait"]).await;
    let said = typed(&cluster, &["node", "list"]).await;
    assert_eq!(said.code, 0, "{}", said.err);
    let rows: Vec<String> = said
        .out()
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    let header = "NODE NAME STATE GROUPS LEADERS UP HEALTH DUTY REPLICAS USED LABELS CLIENTS";
    assert!(rows[0].starts_with(header), "{}", rows[0]);
    let first = "n1 n1 ready 2 2 1m 1s up serve 1 1.00 GiB of 4.00 GiB zone=z1 n1:7400";
    assert!(rows[1].starts_with(first), "{}", rows[1]);
    let second = "n2 n2 no answer - - - dead serve 1 - - n2:7400";
    assert!(rows[2].starts_with(second), "{}", rows[2]);
    assert!(rows[3].contains(" up drain 1 3.00 GiB"), "{}", rows[3]);
    let listed = typed(&cluster, &["node", "list", "-o", "json"])
        .await
        .json();
    assert_eq!(
        (&listed[2]["duty"], &listed[0]["labels"]["zone"]),
        (&json!("drain"), &json!("z1"))
    );
    assert_eq!(
        (&listed[1]["health"], &listed[1]["used_bytes"]),
        (&json!("dead"), &Json::Null)
    );

    cluster.state().leader = None;
    let said = typed(&cluster, &["node", "list"]).await;
    check(
        &said,
        0,
        said.out(),
        &["placement: placement is unavailable"],
    );
    assert!(
        said.out().contains("1m 1s  -       -     -"),
        "{}",
        said.out()
    );
}

#[tokio::test(start_paused = true)]
async fn a_shard_is_explained_by_its_id_or_by_a_key() {
    let cluster = Cluster::new();
    cluster.split("m");
    cluster.state().placement.held = Some("no node for a replica".to_owned());
    let said = typed(&cluster, &["shard", "explain", "s2"]).await;
    let out = "\
s2 from m to -
epoch   2.1
leader  n1 for 1m 1s, term 3
size    12 keys, 2.00 KiB
load    34 operations/s, 1.00 KiB/s
rule    3 replicas spread over zone

 REPLICA  NODE  ROLE      LAG 
 r21      n1    leader    0   
 r22      n2    follower  7   
 r23      n3    follower  -   

repair: in order
vacate: held: no node for a replica
";
    check(&said, 0, out, &[]);
    let by_key = typed(&cluster, &["shard", "explain", "zebra"]).await;
    assert_eq!(by_key, said);
    let words = ["shard", "explain", "--key", "s1", "-o", "json"];
    let said = typed(&cluster, &words).await.json();
    assert_eq!(
        (&said["shard"], &said["start"], &said["leader"]),
        (&json!("s2"), &json!("m"), &json!(1))
    );
    let replica = json!({ "replica": 22, "node": 2, "role": "follower", "lag": 7 });
    assert_eq!(said["replicas"][1], replica);
    let text = "held: no node for a replica";
    let finding = json!({ "aim": "vacate", "state": "held", "text": text });
    assert_eq!(said["findings"][1], finding);
    assert_eq!(said["rule"]["spread"], "zone");

    let said = typed(&cluster, &["shard", "explain", "s9"]).await;
    check(&said, 4, "", &["error: no node has s9\n"]);
    cluster.state().leader = None;
    let words = ["shard", "explain", "s1", "--timeout", "1s"];
    assert_eq!(typed(&cluster, &words).await.code, 2);
}

const MOVE: [&str; 7] = ["shard", "move", "s1", "--from", "n1", "--to", "n4"];

#[tokio::test(start_paused = true)]
async fn a_move_waits_until_the_replica_is_there() {
    let cluster = four_nodes(false);
    let said = typed(&cluster, &MOVE).await;
    check(
        &said,
        0,
        "s1 has moved from n1 to n4\n",
        &["s1: add a replica on n4\n"],
    );
    let again = typed(&cluster, &MOVE).await;
    let err = "error: move_replica: s1 has no replica on n1; nothing was done\n";
    check(&again, 3, "", &[err]);
    let words = ["shard", "move", "s2", "--from", "n1", "--to", "n4"];
    let words = [&words[..], &["--no-wait", "-o", "json"]].concat();
    let said = typed(&cluster, &words).await;
    let expected = json!({ "shard": "s2", "from": 1, "to": 4, "moved": false });
    assert_eq!((said.code, said.json()), (0, expected), "{}", said.err);
}

#[tokio::test(start_paused = true)]
async fn a_move_that_is_given_up_fails_with_what_has_happened() {
    let cluster = four_nodes(false);
    cluster.state().placement.gives_up = true;
    let said = typed(&cluster, &MOVE).await;
    let why = "error: s1 has not moved from n1 to n4: it is on n1, n2, n3\n";
    let event = "  0s ago: given up, since its time is over: s1: move r11 from n1 to n4\n";
    check(&said, 1, "", &[why, event]);
}

#[tokio::test(start_paused = true)]
async fn a_merge_waits_until_the_shards_are_one() {
    let cluster = four_nodes(false);
    let said = typed(&cluster, &["shard", "merge", "apple"]).await;
    check(&said, 0, "s1 has absorbed s2\n", &["s1: absorb s2\n"]);
    let said = typed(&cluster, &["shard", "merge", "s3"]).await;
    let last = "error: s3 has the last keys: nothing is right of it";
    check(&said, 3, "", &[last]);
    let said = typed(&cluster, &["shard", "merge", "--key", "s1"]).await;
    check(&said, 0, "s1 has absorbed s3\n", &[]);
    let said = typed(&cluster, &["shard", "merge", "s2"]).await;
    check(&said, 4, "", &["error: no node has s2\n"]);
}

#[tokio::test(start_paused = true)]
async fn a_merge_need_not_be_waited_for_and_says_when_it_has_failed() {
    let cluster = four_nodes(false);
    cluster.state().placement.gives_up = true;
    let said = typed(&cluster, &["shard", "merge", "s1"]).await;
    let event = "  0s ago: given up, since its time is over: s1: absorb s2\n";
    check(&said, 1, "", &["error: s1 has not absorbed s2\n", event]);
    let words = ["shard", "merge", "s1", "--no-wait"];
    let said = typed(&cluster, &words).await;
    check(&said, 0, "s1 is to absorb s2\n", &[]);
    let words = [&words[..], &["-o", "json"]].concat();
    let said = typed(&cluster, &words).await;
    let expected = json!({ "shard": "s1", "right": "s2", "merged": false });
    assert_eq!((said.code, said.json()), (0, expected), "{}", said.err);
}

#[tokio::test(start_paused = true)]
async fn operators_are_listed_and_given_up() {
    let cluster = four_nodes(false);
    cluster.state().placement.held = Some("for the test".to_owned());
    let said = typed(&cluster, &["operator", "cancel", "s1"]).await;
    check(&said, 4, "", &["error: nothing is being done with s1\n"]);
    typed(&cluster, &[&MOVE[..], &["--no-wait"]].concat()).await;
    let said = typed(&cluster, &["operator", "list"]).await;
    let row =
        "s1     order  move r11 from n1 to n4  add a replica on n4  in 30s   a person wants it";
    assert!(said.out().contains(row), "{}", said.out());
    let said = typed(&cluster, &["operator", "list", "-o", "json"]).await;
    let operator = &said.json()["operators"][0];
    assert_eq!(
        (&operator["shard"], &operator["number"], &operator["next"]),
        (&json!("s1"), &json!(1), &json!("add a replica on n4"))
    );
    let said = typed(&cluster, &["operator", "cancel", "s1"]).await;
    check(&said, 0, "given up: s1: move r11 from n1 to n4\n", &[]);
    let said = typed(&cluster, &["operator", "list", "-o", "json"]).await;
    assert_eq!(said.json(), json!({ "paused": false, "operators": [] }));
}

#[tokio::test(start_paused = true)]
async fn placement_shows_itself_and_pauses() {
    let cluster = four_nodes(false);
    typed(&cluster, &MOVE).await;
    let said = typed(&cluster, &["placement", "pause"]).await;
    check(&said, 0, "placement is paused\n", &[]);
    typed(&cluster, &["node", "drain", "n2", "--no-wait"]).await;
    typed(&cluster, &["rule", "set", "a"]).await;
    typed(&cluster, &["placement", "set", "lag_max", "5"]).await;
    let said = typed(&cluster, &["placement", "status"]).await;
    let out = "\
driver     n1
paused     yes
nodes      4: 4 up; 1 drain, 3 serve
operators  0
rules      1
settings   1 set by a person

0s ago: done: s1: move r11 from n1 to n4
";
    check(&said, 0, out, &[]);
    let words = ["placement", "status", "--events", "0", "-o", "json"];
    let said = typed(&cluster, &words).await.json();
    assert_eq!(
        (&said["nodes_by_duty"]["drain"], &said["events"]),
        (&json!(1), &json!([]))
    );
    let said = typed(&cluster, &["placement", "resume", "-o", "json"]).await;
    assert_eq!(said.json(), json!({ "paused": false }));
}

#[tokio::test(start_paused = true)]
async fn settings_are_listed_set_and_reset() {
    let cluster = Cluster::new();
    let said = typed(&cluster, &["placement", "set", "replace_after", "10m"]).await;
    check(&said, 0, "replace_after is 10m\n", &[]);
    let row = |out: &str, name: &str| {
        let mut lines = out.lines();
        let line = lines.find(|line| line.contains(name)).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let said = typed(&cluster, &["placement", "settings"]).await;
    assert_eq!(
        row(said.out(), "replace_after"),
        "replace_after 10m a person"
    );
    assert_eq!(row(said.out(), "lag_max"), "lag_max 1000 default");
    let said = typed(&cluster, &["placement", "reset", "replace_after"]).await;
    check(&said, 0, "replace_after has its default again\n", &[]);
    let said = typed(&cluster, &["placement", "settings", "-o", "json"]).await;
    let settings = said.json()["settings"].clone();
    let mut settings = settings.as_array().unwrap().iter();
    let setting = settings.find(|it| it["name"] == "replace_after").unwrap();
    let expected = json!({ "name": "replace_after", "value": "5m", "is_set": false });
    assert_eq!(setting, &expected);
    for (name, value, err) in [
        ("split_bites", "1", "there is no setting \"split_bites\""),
        (
            "lag_max",
            "many",
            "lag_max cannot be \"many\": a whole number",
        ),
    ] {
        let said = typed(&cluster, &["placement", "set", name, value]).await;
        check(&said, 3, "", &[err]);
    }
}

#[tokio::test(start_paused = true)]
async fn rules_are_set_listed_and_deleted() {
    let cluster = Cluster::new();
    let words = [
        "rule",
        "set",
        "user/",
        "--replicas",
        "5",
        "--require",
        "region=eu",
        "--require",
        "disk=ssd",
        "--forbid",
        "zone=c",
        "--prefer-leader",
        "zone=a",
        "--spread",
        "rack",
    ];
    let said = typed(&cluster, &words).await;
    let out = "user/: 5 replicas spread over rack, only on region=eu and disk=ssd, never on zone=c, led best on zone=a\n";
    check(&said, 0, out, &[]);
    let said = typed(&cluster, &["rule", "set", ""]).await;
    check(&said, 0, "every key: 3 replicas spread over zone\n", &[]);
    typed(&cluster, &["rule", "set", "--hex", "ff"]).await;
    let said = typed(&cluster, &["rule", "list"]).await;
    let row = "user/   5         region=eu,disk=ssd  zone=c  zone=a   rack";
    assert!(said.out().contains(row), "{}", said.out());
    let rules = typed(&cluster, &["rule", "list", "-o", "json"]).await;
    let rules = rules.json()["rules"].clone();
    let expected = json!({
        "prefix": "user/", "replicas": 5, "require": ["region=eu", "disk=ssd"],
        "forbid": ["zone=c"], "prefer_leader": ["zone=a"], "spread": "rack",
    });
    assert_eq!(
        (&rules[0], &rules[2]["prefix_base64"]),
        (&expected, &json!("/w=="))
    );
    let said = typed(&cluster, &["rule", "delete", "user/"]).await;
    check(&said, 0, "deleted the rule for user/\n", &[]);
    cluster.take_calls();
    let said = typed(&cluster, &["rule", "delete", "user/"]).await;
    check(&said, 4, "", &["error: there is no rule for user/\n"]);
    assert_eq!(cluster.take_calls(), "n1 overview");
}

#[tokio::test(start_paused = true)]
async fn a_file_of_rules_is_checked_before_the_first_is_sent() {
    let cluster = Cluster::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let words = ["rule", "set", "--file", path];
    let good = "[[rule]]\nprefix = \"a\"\n[[rule]]\nprefix = \"b\"\nreplicas = 1\n";
    std::fs::write(path, format!("{good}zone = \"x\"\n")).unwrap();
    let said = typed(&cluster, &words).await;
    let err = format!("error: {path}: line 6: unknown field `zone`");
    check(&said, 3, "", &[&err, "; nothing was done\n"]);
    assert_eq!(cluster.take_calls(), "");
    std::fs::write(path, good).unwrap();
    let said = typed(&cluster, &words).await;
    let out = "a: 3 replicas spread over zone\nb: 1 replica spread over zone\n";
    check(&said, 0, out, &[]);
    assert_eq!(cluster.state().placement.rules.len(), 2);
    let said = typed(&cluster, &[&words[..], &["--hex"]].concat()).await;
    check(
        &said,
        3,
        "",
        &["line 2: prefix: \"a\" has an odd number of hex digits"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_wait_any_longer_is_told_what_stays() {
    let served = Served::start().await;
    served.cluster.state().placement.held = Some("for the test".to_owned());
    let drain = Command::new(env!("CARGO_BIN_EXE_quorate"))
        .args(["node", "drain", "n1"])
        .env("QUORATE_ENDPOINTS", &served.endpoints)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // The first look is for the node; at the third one it waits, and hears the signal.
    let looks = || {
        served
            .cluster
            .state()
            .calls
            .join(" ")
            .matches("overview")
            .count()
    };
    while looks() < 3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let id = drain.id().unwrap().to_string();
    let kill = Command::new("kill").args(["-INT", &id]).status().await;
    assert!(kill.unwrap().success());
    let output = drain.wait_with_output().await.unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    let expected = "error: interrupted; n1 is still to lead nothing; take that back with: quorate node recommission n1\n";
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.ends_with(expected), "{err}");
    assert_eq!(duty(&served.cluster, 1), Some(Duty::Drain));
    let explained = served.quorate(&["shard", "explain", "s1"]).await;
    assert_eq!(explained.code, 0, "{}", explained.err);
    served.end().await;
}
