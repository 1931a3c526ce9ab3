//! `quorate verify` on what real nodes have left behind: whole, and with a bit flipped in each kind of file.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;

use serde_json::Value as Json;
use support::Rig;

/// Runs the verb; its exit code, and what it printed.
fn verify(directory: &Path, more: &[&str]) -> (i32, Output) {
    let output = Command::new(env!("CARGO_BIN_EXE_quorate"))
        .arg("verify")
        .arg(directory)
        .args(more)
        .output()
        .unwrap();
    (output.status.code().unwrap(), output)
}

fn text(output: &Output) -> String {
    let printed = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8(printed).unwrap()
}

/// Every file below a directory, with its content and when it was changed.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(contents(&path)),
            false => drop(found.insert(path.clone(), fs::read(&path).unwrap())),
        }
    }
    found
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy_all(&path, &to),
            false => drop(fs::copy(&path, &to).unwrap()),
        }
    }
}

fn flip(file: &Path, at: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[at] ^= 0x10;
    fs::write(file, bytes).unwrap();
}

/// The file in a directory whose name begins so; the last of several.
fn file(directory: &Path, name: &str) -> PathBuf {
    let mut paths: Vec<PathBuf> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with(name)
        })
        .collect();
    paths.sort();
    paths
        .pop()
        .unwrap_or_else(|| panic!("no {name} in {}", directory.display()))
}

/// One node that was killed under writers, and started once more, so that the engine has a summary.
async fn left_behind() -> (Rig, PathBuf) {
    let mut rig = Rig::start(support::SMALL_LOG).await;
    let writers = support::write(&rig.nodes, "verify/", 7);
    support::answered(&writers, 300, "before the kill").await;
    rig.processes.kill(1).unwrap();
    rig.processes.start(1).unwrap();
    rig.ready(&[0, 1, 2]).await;
    support::answered(&writers, 300, "after the restart").await;
    rig.processes.kill_all().unwrap();
    writers.stop().await;
    let data = rig.processes.data(1).to_owned();
    (rig, data)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_kill_leaves_is_fine_and_each_flipped_bit_is_told_with_what_to_do() {
    let (mut rig, data) = left_behind().await;
    let before = contents(&data);
    let (code, output) = verify(&data, &[]);
    assert_eq!(code, 0, "{}", text(&output));
    assert!(text(&output).contains("fine"), "{}", text(&output));
    let (code, output) = verify(&data, &["-o", "json"]);
    let json: Json = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((code, &json["fine"]), (0, &Json::Bool(true)), "{json}");
    assert_eq!(json["parts"].as_array().unwrap().len(), 6, "{json}");
    assert!(contents(&data) == before, "verify has changed something");
    let home = data.parent().unwrap();
    assert!(
        !file_names(home).iter().any(|name| name.contains("verify")),
        "{:?}",
        file_names(home)
    );

    let trial = home.join("trial");
    // The file, where in it, and which part is called damaged.
    let segment = file(&data.join("wal"), "log-");
    let segment = Path::new("wal").join(segment.file_name().unwrap());
    let summary = file(&data.join("engine"), "snap.");
    let summary = Path::new("engine").join(summary.file_name().unwrap());
    let cases: [(&Path, usize, &str); 7] = [
        (Path::new("identity"), 40, "identity"),
        (Path::new("members"), 3, "members"),
        (&segment, 20, "log"),
        (&segment, 560, "log"),
        (&summary, 9, "engine"),
        (Path::new("engine/db"), 25, "engine"),
        (Path::new("engine/flushes"), 7, "engine"),
    ];
    for (name, at, part) in cases {
        let _ = fs::remove_dir_all(&trial);
        copy_all(&data, &trial);
        if name == Path::new("members") && !trial.join(name).exists() {
            continue;
        }
        flip(&trial.join(name), at);
        let (code, output) = verify(&trial, &["-o", "json"]);
        let said = text(&output);
        assert_eq!(code, 1, "{} at {at}: {said}", name.display());
        let json: Json = serde_json::from_slice(&output.stdout).unwrap();
        let parts = json["parts"].as_array().unwrap().iter();
        let damaged: Vec<&Json> = parts.filter(|part| part["state"] == "damaged").collect();
        assert_eq!(damaged.len(), 1, "{} at {at}: {json}", name.display());
        assert_eq!(damaged[0]["part"], part, "{json}");
        assert!(damaged[0]["remedy"].is_string(), "{json}");
        assert!(said.contains("what to do"), "{said}");
    }

    // The log of a node that had replicas is gone, and so is what it had voted.
    let _ = fs::remove_dir_all(&trial);
    copy_all(&data, &trial);
    fs::remove_dir_all(trial.join("wal")).unwrap();
    let (code, output) = verify(&trial, &[]);
    assert_eq!(code, 1);
    assert!(
        text(&output).contains("the log was lost"),
        "{}",
        text(&output)
    );

    // Nothing was changed all the while: the node starts on it.
    rig.processes.start_all().unwrap();
    rig.ready(&[0, 1, 2]).await;
    let (code, output) = verify(&data, &[]);
    assert_eq!(code, 3, "{}", text(&output));
    assert!(
        text(&output).contains("used by another process"),
        "{}",
        text(&output)
    );
}

fn file_names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name());
    names
        .map(|name| name.to_string_lossy().into_owned())
        .collect()
}

#[test]
fn what_is_no_data_directory_is_bad_input() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().join("none"), dir.path().to_owned()] {
        let (code, output) = verify(&path, &[]);
        assert_eq!(code, 3, "{}", text(&output));
    }
    assert_eq!(file_names(dir.path()), [""; 0]);
}
