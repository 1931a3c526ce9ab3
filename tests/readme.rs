//! README's examples, typed as they stand there, against a real cluster.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use support::Rig;

/// The address in README's examples, which everything here replaces.
const FIRST_NODE: &str = "127.0.0.1:7400";
const THIRD_NODE: &str = "127.0.0.1:7420";

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_prints_what_readme_says() {
    let block = &blocks("console")[0];
    let rig = Rig::start(&[]).await;
    let block = block.replace(THIRD_NODE, &rig.processes.client_address(2));
    let endpoint = rig.processes.client_address(0);
    let printed = tokio::task::spawn_blocking(move || {
        let commands = block.lines().filter_map(|line| line.strip_prefix("$ "));
        let printed: Vec<String> = commands
            .map(|command| format!("$ {command}\n{}\n", shell(command, &endpoint).trim_end()))
            .collect();
        (block, printed.concat())
    });
    let (block, printed) = printed.await.unwrap();
    assert_eq!(without_numbers(&printed), without_numbers(&block));
}

/// Needs a Python with grpcio and grpcio-tools: `QUORATE_PYTHON` names it.
#[tokio::test(flavor = "multi_thread")]
async fn the_python_example_works() {
    let Ok(python) = std::env::var("QUORATE_PYTHON") else {
        support::skip(
            "QUORATE_REQUIRE_PYTHON",
            "readme::python",
            "QUORATE_PYTHON names no Python",
        );
        return;
    };
    let rig = Rig::start(&[]).await;
    let example = blocks("python")[0].replace(FIRST_NODE, &rig.processes.client_address(0));
    let printed = tokio::task::spawn_blocking(move || run_python(&python, &example));
    let printed = printed.await.unwrap();
    assert_eq!(without_numbers(&printed), "hello #\n");
}

#[test]
fn readme_has_the_examples_that_are_tried() {
    assert_eq!(blocks("console").len(), 1);
    assert_eq!(blocks("python").len(), 1);
    assert!(blocks("python")[0].contains(FIRST_NODE));
    assert!(
        blocks("sh")
            .iter()
            .any(|block| block.contains("grpc_tools.protoc -I proto"))
    );
    assert!(blocks("sh").contains(&"cargo test\n".to_owned()));
    assert_eq!(without_numbers("version 17.0, 8"), "version #.#, #");
}

/// README's fenced blocks of a language.
fn blocks(language: &str) -> Vec<String> {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let fence = format!("```{language}\n");
    let parts = readme.split(&fence).skip(1);
    parts
        .map(|part| part.split("```").next().unwrap().to_owned())
        .collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What a command prints; it must succeed.
fn shell(command: &str, endpoint: &str) -> String {
    let mut path = vec![
        PathBuf::from(env!("CARGO_BIN_EXE_quorate"))
            .parent()
            .unwrap()
            .to_owned(),
    ];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap()));
    output(
        Command::new("sh")
            .args(["-c", command])
            .env("PATH", std::env::join_paths(path).unwrap())
            .env("QUORATE_ENDPOINTS", endpoint),
    )
}

/// What the example prints, with the stubs made as README says.
fn run_python(python: &str, example: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let blocks = blocks("sh");
    let making = blocks.iter().flat_map(|block| block.lines());
    let mut lines = making;
    let making = lines
        .find(|line| line.contains("grpc_tools.protoc"))
        .unwrap();
    let out = directory.path().display().to_string();
    let making = making
        .replace("python3", python)
        .replace("_out=.", &format!("_out={out}"));
    output(Command::new("sh").args(["-c", &making]).current_dir(root()));
    std::fs::write(directory.path().join("example.py"), example).unwrap();
    output(
        Command::new(python)
            .arg("example.py")
            .current_dir(directory.path()),
    )
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {} {said}",
        output.status
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Runs of digits become `#`: stamps and ports differ from run to run.
fn without_numbers(text: &str) -> String {
    let mut shown = String::new();
    for letter in text.chars() {
        let letter = if letter.is_ascii_digit() { '#' } else { letter };
        if letter != '#' || !shown.ends_with('#') {
            shown.push(letter);
        }
    }
    shown
}
