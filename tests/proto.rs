//! The files in `proto/` are the reference of the interface: everything in them is explained, and what
//! must never change back is held here.

#![allow(clippy::unwrap_used)]

use std::fs;

const FILES: [&str; 6] = ["kv", "cluster", "admin", "placement", "error", "transport"];

fn lines(name: &str) -> Vec<String> {
    let text = fs::read_to_string(format!("proto/quorate/v1/{name}.proto")).unwrap();
    text.lines().map(|line| line.trim().to_owned()).collect()
}

fn is_declaration(line: &str) -> bool {
    let begins = |word: &str| line.starts_with(word);
    let field = line.ends_with(';') && line.contains(" = ") && !begins("syntax");
    let block = ["message ", "enum ", "service ", "rpc ", "oneof "]
        .into_iter()
        .any(begins);
    (field || block) && !begins("//")
}

#[test]
fn everything_in_the_proto_files_is_explained() {
    for name in FILES {
        let lines = lines(name);
        for (before, line) in lines.iter().zip(&lines[1..]) {
            let explained = before.starts_with("//");
            assert!(
                !is_declaration(line) || explained,
                "{name}.proto: say what this is: {line}"
            );
        }
    }
}

#[test]
fn enums_start_at_unspecified() {
    for name in FILES {
        let lines = lines(name);
        for (at, line) in lines.iter().enumerate() {
            if line.starts_with("enum ") {
                let first = lines[at..]
                    .iter()
                    .find(|line| line.contains(" = "))
                    .unwrap();
                assert!(
                    first.ends_with("_UNSPECIFIED = 0;"),
                    "{name}.proto: {first}"
                );
            }
        }
    }
}

#[test]
fn keys_and_values_are_bytes() {
    for line in lines("kv") {
        let fields = [
            " key = ",
            " keys = ",
            " value = ",
            " start = ",
            " end = ",
            " resume_key = ",
        ];
        if fields.iter().any(|field| line.contains(field)) {
            assert!(line.contains("bytes "), "{line}");
        }
    }
}
