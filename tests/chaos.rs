//! `quorate chaos` as a person types it: a short run on real nodes, and what it leaves behind.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::Command;
use std::process::Output;

/// A debug build on a busy machine: elections and syncs take their time, and so must the clients.
const RUN: &[&str] = &[
    "--duration=15s",
    "--seed=11",
    "--faults=kill,pause,isolate-leader",
    "--rate=300",
];

#[test]
fn a_short_run_is_good_and_leaves_a_report_and_nothing_else() {
    let _alone = support::alone();
    let dir = tempfile::tempdir().unwrap();
    let output = chaos(
        dir.path(),
        &[RUN, &["--output=json", "--report=r.html"]].concat(),
    );
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["verdict"], "good", "{said}");
    assert_eq!((&result["lost"], &result["seed"]), (&0.into(), &11.into()));
    assert!(result["acknowledged"].as_u64().unwrap() >= 100, "{said}");
    assert!(result["faults"].as_array().unwrap().len() >= 2, "{said}");
    assert!(said.contains("seed 11; again: quorate chaos --seed 11 --nodes 3"));
    let page = std::fs::read_to_string(dir.path().join("r.html")).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    assert!(page.contains("verdict good") && page.contains("<svg"));
    let left = std::fs::read_dir(dir.path()).unwrap();
    assert_eq!(
        left.count(),
        1,
        "only the report is left in {:?}",
        dir.path()
    );
}

#[test]
fn what_cannot_be_done_is_said_before_anything_is_started() {
    let dir = tempfile::tempdir().unwrap();
    for (flags, words) in [
        (vec!["--faults=flood"], "\"flood\" is no kind of fault"),
        (vec!["--nodes=1"], "3..=9"),
        (vec!["--report=no/such/place.html"], "no/such/place.html"),
        (vec!["--compose=nothing.yaml"], "no file nothing.yaml"),
    ] {
        let output = chaos(dir.path(), &flags);
        assert_eq!(output.status.code(), Some(3), "{flags:?}");
        assert!(
            said(&output).contains(words),
            "{flags:?}: {}",
            said(&output)
        );
    }
    let list = chaos(dir.path(), &["--list-faults"]);
    assert!(list.status.success() && said(&list).contains("rolling-restart"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Runs in `dir`, where also the nodes' data goes.
fn chaos(dir: &Path, flags: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    let command = command.arg("chaos").args(flags).current_dir(dir);
    command.env("TMPDIR", dir).output().unwrap()
}

fn said(output: &Output) -> String {
    let parts = [&output.stdout, &output.stderr];
    parts.map(|part| String::from_utf8_lossy(part)).concat()
}
