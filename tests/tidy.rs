//! The rules of the house, held by a test: who may use whom, who may act, where a foreign library
//! lives, and that every file says what it is. Reads the sources as text; each complaint names file,
//! line and the way out.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

/// One source file: its path below the repository's root, and its text.
struct Source {
    path: String,
    text: String,
}

/// A foreign library, or a door to the world, and the only places that may name it.
struct Home {
    names: &'static [&'static str],
    places: &'static [&'static str],
}

/// The places end in `/` for a folder.
const HOMES: &[Home] = &[
    Home {
        names: &["openraft"],
        places: &["src/raft/"],
    },
    Home {
        names: &["sled", "libc"],
        places: &["src/engine/sled.rs"],
    },
    Home {
        names: &[
            "tonic",
            "tonic_prost",
            "tonic_health",
            "tonic_reflection",
            "tonic_types",
            "prost",
            "prost_types",
        ],
        places: &["src/wire/", "src/server/grpc/"],
    },
    Home {
        names: &["http_body"],
        places: &["src/server/grpc/"],
    },
    Home {
        names: &["bincode"],
        places: &["src/codec/"],
    },
    Home {
        names: &["axum"],
        places: &["src/server/http/"],
    },
    Home {
        names: &["SystemTime"],
        places: &["src/env/clock.rs"],
    },
    Home {
        names: &["rand"],
        places: &["src/env/rng.rs"],
    },
];

/// Words that a file which decides may not contain: tasks, clocks, chance.
const ACTING_WORDS: &[&str] = &[
    "tokio",
    "async",
    "await",
    "spawn",
    "spawn_blocking",
    "spawn_local",
    "block_on",
    "Instant",
    "SystemTime",
    "rand",
    "now_v7",
    "new_v4",
];

/// Modules of the standard library that act.
const ACTING_PATHS: &[&str] = &["fs", "net", "thread", "process", "env"];

/// What is a mere value in such a module.
const VALUES: &[&str] = &[
    "IpAddr",
    "Ipv4Addr",
    "Ipv6Addr",
    "SocketAddr",
    "SocketAddrV4",
    "SocketAddrV6",
    "AddrParseError",
];

const UNSAFE_HOME: &str = "src/engine/sled.rs";
const MUTANTS: &str = "src/env/mutant.rs";

#[test]
fn the_sources_keep_the_rules_of_the_house() {
    let complaints = complaints(&read_tree(Path::new(env!("CARGO_MANIFEST_DIR"))));
    assert!(
        complaints.is_empty(),
        "{} broken rules:\n{}",
        complaints.len(),
        complaints.join("\n")
    );
}

fn complaints(sources: &[Source]) -> Vec<String> {
    let modules = module_order(sources);
    let mut found = Vec::new();
    let mut unsafe_allowed = Vec::new();
    for source in sources {
        says_what_it_is(source, &mut found);
        let code = Code::of(source);
        code.unfinished(&mut found);
        if !source.path.starts_with("src/") {
            continue;
        }
        code.uses_only_what_is_above(&modules, &mut found);
        code.names_crate_one_item_at_a_time(&mut found);
        code.foreign_names_at_home(&mut found);
        if doc_of(&source.text).contains("Decides only") {
            code.without_tests().decides_only(&mut found);
        }
        unsafe_allowed.extend(code.unsafe_allowed());
    }
    one_unsafe(sources, &unsafe_allowed, &mut found);
    mutants_are_lines(sources, &mut found);
    found
}

/// A fault that is put in to try the tests is asked for as `mutant::lives(Mutant::X)` and in no other way,
/// and every one that is named somewhere can be put in.
fn mutants_are_lines(sources: &[Source], found: &mut Vec<String>) {
    let mut used = Vec::new();
    let mut named = Vec::new();
    for source in sources {
        let code = Code::of(source);
        if source.path == MUTANTS {
            named = code.mutants_named();
        } else if source.path.starts_with("src/") {
            code.mutants_used(&mut used, found);
        }
    }
    for name in named.iter().filter(|name| !used.contains(name)) {
        found.push(format!("{MUTANTS}:1: the mutant {name} is nowhere"));
    }
}

/// The `mod` lines of `src/lib.rs`, bottom first.
fn module_order(sources: &[Source]) -> Vec<String> {
    let Some(lib) = sources.iter().find(|source| source.path == "src/lib.rs") else {
        return Vec::new();
    };
    let words = Code::of(lib).words;
    words
        .windows(2)
        .filter(|pair| pair[0].text == "mod")
        .map(|pair| pair[1].text.clone())
        .collect()
}

/// The leading `//!` lines.
fn doc_of(text: &str) -> String {
    let lines = text.lines().take_while(|line| line.starts_with("//!"));
    lines.collect::<Vec<_>>().join("\n").replace("\n//! ", " ")
}

fn says_what_it_is(source: &Source, found: &mut Vec<String>) {
    let first = source.text.lines().next().unwrap_or_default();
    if first.trim_start_matches("//!").trim().is_empty() || !first.starts_with("//!") {
        found.push(format!(
            "{}:1: the first line must be `//!` and say what the file is",
            source.path
        ));
    }
}

fn one_unsafe(sources: &[Source], allowed: &[String], found: &mut Vec<String>) {
    let wanted = usize::from(sources.iter().any(|source| source.path == UNSAFE_HOME));
    if allowed.len() != wanted {
        found.push(format!(
            "`allow(unsafe_code)` must stand once, in {UNSAFE_HOME}; it stands at: [{}]",
            allowed.join(", ")
        ));
    }
    for place in allowed {
        if !place.starts_with(UNSAFE_HOME) {
            found.push(format!(
                "{place}: `allow(unsafe_code)` belongs in {UNSAFE_HOME} alone"
            ));
        }
    }
}

/// One word or sign of a source, comments and literals left out. `::` is one sign.
#[derive(Debug, Clone)]
struct Word {
    text: String,
    line: usize,
    /// How many `mod name { .. }` of this file enclose it.
    inside: usize,
    /// Whether it stands under `#[cfg(test)]`.
    test: bool,
}

struct Code<'a> {
    path: &'a str,
    words: Vec<Word>,
}

impl<'a> Code<'a> {
    fn of(source: &'a Source) -> Code<'a> {
        let mut words = split_words(&source.text);
        mark_modules(&mut words);
        Code {
            path: &source.path,
            words,
        }
    }

    fn without_tests(&self) -> Code<'a> {
        Code {
            path: self.path,
            words: self
                .words
                .iter()
                .filter(|word| !word.test)
                .cloned()
                .collect(),
        }
    }

    /// The text of the word `offset` places after the `index`th, empty beyond the ends.
    fn at(&self, index: usize, offset: isize) -> &str {
        index
            .checked_add_signed(offset)
            .and_then(|place| self.words.get(place))
            .map_or("", |word| &word.text)
    }

    fn place(&self, word: &Word) -> String {
        format!("{}:{}", self.path, word.line)
    }

    /// `types` for `src/types/key.rs` and for `src/types.rs`; none for the crate's roots.
    fn module(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("src/")?;
        let first = inside.split('/').next()?;
        let name = first.strip_suffix(".rs").unwrap_or(first);
        (!["lib", "main"].contains(&name)).then_some(name)
    }

    /// How many `super::` lead from the file's own level to the crate's root.
    fn depth(&self) -> usize {
        let parts = self.path.matches('/').count();
        if self.path.ends_with("/mod.rs") {
            parts - 1
        } else {
            parts
        }
    }

    fn uses_only_what_is_above(&self, modules: &[String], found: &mut Vec<String>) {
        let Some(own) = self.module() else { return };
        let Some(own_place) = modules.iter().position(|module| module == own) else {
            found.push(format!(
                "{}:1: src/lib.rs does not declare `{own}`",
                self.path
            ));
            return;
        };
        for (index, word) in self.words.iter().enumerate() {
            let named = match word.text.as_str() {
                "crate" if self.at(index, 1) == "::" => self.at(index, 2),
                "super" if self.at(index, -1) != "::" => self.beyond_root(index, word),
                _ => continue,
            };
            if named.is_empty() {
                continue;
            }
            match modules.iter().position(|module| module == named) {
                Some(place) if place <= own_place => {}
                Some(_) => found.push(format!(
                    "{}: `{own}` uses `{named}`, which src/lib.rs declares below it",
                    self.place(word)
                )),
                None => found.push(format!(
                    "{}: `crate::{named}` is no module of src/lib.rs; name the module, so that its place can be checked",
                    self.place(word)
                )),
            }
        }
    }

    /// What a chain of `super::` names at the crate's root; empty while it stays in the module.
    fn beyond_root(&self, index: usize, word: &Word) -> &str {
        let mut ups = 0;
        while self.at(index, 2 * ups) == "super" && self.at(index, 2 * ups + 1) == "::" {
            ups += 1;
        }
        if ups as usize >= self.depth() + word.inside {
            self.at(index, 2 * ups)
        } else {
            ""
        }
    }

    fn names_crate_one_item_at_a_time(&self, found: &mut Vec<String>) {
        for (index, word) in self.words.iter().enumerate() {
            let starts = word.text == "use" && self.at(index, 1) == "crate";
            if !starts {
                continue;
            }
            let rest = self.words[index..].iter();
            let statement: Vec<&Word> = rest.take_while(|word| word.text != ";").collect();
            if statement.iter().any(|word| word.text == "{") {
                found.push(format!(
                    "{}: one `use crate::..` per line, without braces",
                    self.place(word)
                ));
            }
        }
    }

    /// Whether the file has a module of ours with this name, which hides a library: it declares the
    /// module, or imports it.
    fn declares(&self, name: &str) -> bool {
        let named = self.words.iter().enumerate();
        let mut named = named.filter(|(_, word)| word.text == name);
        named.any(|(index, _)| {
            let imported = self.at(index, -1) == "::" && self.at(index, 1) == ";";
            imported || ["mod", "as"].contains(&self.at(index, -1))
        })
    }

    /// Whether the word begins a path (`name::..`) or is used by itself (`use name`).
    fn begins_path(&self, index: usize) -> bool {
        if self.at(index, -1) == "::" {
            return false;
        }
        let used = self.at(index, -1) == "use" || self.at(index, -1) == "crate";
        self.at(index, 1) == "::" || used
    }

    fn foreign_names_at_home(&self, found: &mut Vec<String>) {
        for (index, word) in self.words.iter().enumerate() {
            let Some(home) = HOMES
                .iter()
                .find(|home| home.names.contains(&word.text.as_str()))
            else {
                continue;
            };
            // A type is meant wherever it stands; a library only where a path begins.
            let is_type = word.text.starts_with(char::is_uppercase);
            if !is_type && (!self.begins_path(index) || self.declares(&word.text)) {
                continue;
            }
            if !home.places.iter().any(|place| lies_in(self.path, place)) {
                found.push(format!(
                    "{}: `{}` may be named only in {}",
                    self.place(word),
                    word.text,
                    home.places.join(" and "),
                ));
            }
        }
    }

    fn decides_only(&self, found: &mut Vec<String>) {
        for (index, word) in self.words.iter().enumerate() {
            let path = word.text == "std" && self.at(index, 1) == "::";
            let acting_path = path
                && ACTING_PATHS.contains(&self.at(index, 2))
                && !VALUES.contains(&self.at(index, 4));
            if acting_path {
                found.push(format!(
                    "{}: the file says `Decides only` and names `std::{}`",
                    self.place(word),
                    self.at(index, 2)
                ));
            }
            if ACTING_WORDS.contains(&word.text.as_str()) {
                found.push(format!(
                    "{}: the file says `Decides only` and names `{}`",
                    self.place(word),
                    word.text
                ));
            }
        }
    }

    fn unfinished(&self, found: &mut Vec<String>) {
        for (index, word) in self.words.iter().enumerate() {
            let unfinished = ["todo", "unimplemented"].contains(&word.text.as_str());
            if unfinished && self.at(index, 1) == "!" {
                found.push(format!(
                    "{}: `{}!` is not finished work",
                    self.place(word),
                    word.text
                ));
            }
        }
    }

    /// The names in `mutants! { Name: "..", .. }`.
    fn mutants_named(&self) -> Vec<String> {
        let begins = |index: &usize| self.at(*index, 0) == "mutants" && self.at(*index, 2) == "{";
        let Some(begin) = (0..self.words.len()).find(begins) else {
            return Vec::new();
        };
        let listed = self.words[begin + 3..].iter();
        let listed = listed.take_while(|word| word.text != "}");
        listed
            .map(|word| word.text.clone())
            .filter(|word| word.starts_with(char::is_uppercase))
            .collect()
    }

    fn mutants_used(&self, used: &mut Vec<String>, found: &mut Vec<String>) {
        for (index, word) in self.words.iter().enumerate() {
            let before = (-4..0).map(|offset| self.at(index, offset));
            let asked = before.eq(["mutant", "::", "lives", "("]);
            let is_right = match word.text.as_str() {
                "Mutant" if asked => {
                    used.push(self.at(index, 2).to_owned());
                    true
                }
                "Mutant" => self.at(index, -1) == "::" && self.at(index, 1) == ";",
                "mutant" if self.at(index, 1) == "::" => {
                    let next = [self.at(index, 2), self.at(index, 3), self.at(index, 4)];
                    next == ["lives", "(", "Mutant"] || next[..2] == ["Mutant", ";"]
                }
                _ => true,
            };
            if !is_right {
                found.push(format!(
                    "{}: a mutant is asked for as `mutant::lives(Mutant::Name)`",
                    self.place(word)
                ));
            }
        }
    }

    fn unsafe_allowed(&self) -> Vec<String> {
        let words = self.words.iter().enumerate();
        words
            .filter(|(index, word)| {
                word.text == "unsafe_code"
                    && ["allow", "expect", "warn"].contains(&self.at(*index, -2))
            })
            .map(|(_, word)| self.place(word))
            .collect()
    }
}

fn lies_in(path: &str, place: &str) -> bool {
    path == place || (place.ends_with('/') && path.starts_with(place))
}

/// Splits a source into words and signs; comments, strings and characters are left out.
fn split_words(text: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut line = 1;
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = skipped(rest).unwrap_or_else(|| {
            let length = if first.is_alphanumeric() || first == '_' {
                rest.find(|c: char| !c.is_alphanumeric() && c != '_')
                    .unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            words.push(Word {
                text: rest[..length].to_owned(),
                line,
                inside: 0,
                test: false,
            });
            length
        });
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    words
}

/// Length of the white space, comment or literal at the start of `rest`, if there is one.
fn skipped(rest: &str) -> Option<usize> {
    let first = rest.chars().next()?;
    if first.is_whitespace() {
        return Some(first.len_utf8());
    }
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return Some(block_comment(rest));
    }
    let unprefixed = rest.trim_start_matches(['b', 'c', 'r']);
    let prefix = rest.len() - unprefixed.len();
    if prefix <= 2 && rest[..prefix].contains('r') {
        let hashes = unprefixed.len() - unprefixed.trim_start_matches('#').len();
        if unprefixed[hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let body = &unprefixed[hashes + 1..];
            let close = body.find(&end).map_or(body.len(), |at| at + end.len());
            return Some(prefix + hashes + 1 + close);
        }
    }
    if prefix <= 1 && unprefixed.starts_with('"') {
        return Some(prefix + quoted(unprefixed, '"'));
    }
    if prefix <= 1 && unprefixed.starts_with('\'') && is_character(unprefixed) {
        return Some(prefix + quoted(unprefixed, '\''));
    }
    None
}

fn block_comment(rest: &str) -> usize {
    let mut open = 0;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            open += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            open -= 1;
            at += 2;
            if open == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

/// Length of a literal with its quotes.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        if !escaped && c == quote {
            return at + 1;
        }
        escaped = !escaped && c == '\\';
    }
    rest.len()
}

/// Tells `'a'` and `'\n'` from the lifetime `'a`.
fn is_character(rest: &str) -> bool {
    let mut inside = rest.chars().skip(1);
    match inside.next() {
        Some('\\') => true,
        Some(_) => inside.next() == Some('\''),
        None => false,
    }
}

/// Notes for each word how many inline modules enclose it, and whether one of them is for tests.
fn mark_modules(words: &mut [Word]) {
    let mut open: Vec<(usize, bool)> = Vec::new();
    let mut braces = 0;
    for index in 0..words.len() {
        let text = words[index].text.clone();
        words[index].inside = open.len();
        words[index].test = open.iter().any(|(_, test)| *test);
        match text.as_str() {
            "{" => {
                braces += 1;
                if index >= 2 && words[index - 2].text == "mod" {
                    open.push((braces, is_for_tests(&words[..index - 2])));
                }
            }
            "}" => {
                if open.last().is_some_and(|(depth, _)| *depth == braces) {
                    open.pop();
                }
                braces = braces.saturating_sub(1);
            }
            _ => {}
        }
    }
}

/// Whether the words end in an attribute `#[cfg(test)]`, with or without a visibility after it.
fn is_for_tests(before: &[Word]) -> bool {
    let tail: Vec<&str> = before.iter().map(|word| word.text.as_str()).collect();
    let attribute = ["#", "[", "cfg", "(", "test", ")", "]"];
    tail.ends_with(&attribute)
        || tail
            .strip_suffix(&["pub"])
            .is_some_and(|t| t.ends_with(&attribute))
}

/// Every Rust file of the repository that is ours.
fn read_tree(root: &Path) -> Vec<Source> {
    let mut sources = Vec::new();
    for folder in ["src", "tests", "benches", "fuzz"] {
        read_folder(root, &root.join(folder), &mut sources);
    }
    read_file(root, &root.join("build.rs"), &mut sources);
    assert!(sources.len() > 20, "only {} sources found", sources.len());
    sources
}

fn read_folder(root: &Path, folder: &Path, sources: &mut Vec<Source>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() && !path.ends_with("target") {
            read_folder(root, &path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            read_file(root, &path, sources);
        }
    }
}

fn read_file(root: &Path, path: &Path, sources: &mut Vec<Source>) {
    let Ok(text) = fs::read_to_string(path) else {
        return;
    };
    let below = path.strip_prefix(root).unwrap();
    sources.push(Source {
        path: below.to_str().unwrap().to_owned(),
        text,
    });
}

mod bad_sources {
    use super::Source;
    use super::complaints;

    const LIB: &str = "//! The map.\npub mod low;\npub mod env;\npub mod engine;\npub mod high;\n";

    /// What the rules say about one file in a house of four modules.
    fn check(path: &str, text: &str) -> Vec<String> {
        let sources = [("src/lib.rs", LIB), (path, text)].map(|(path, text)| Source {
            path: path.to_owned(),
            text: text.to_owned(),
        });
        complaints(&sources)
    }

    #[track_caller]
    fn refused(path: &str, body: &str, words: &str) {
        let said = check(path, &format!("//! A file.\n{body}\n"));
        assert_eq!(said.len(), 1, "{body}: {said:?}");
        assert!(said[0].contains(words), "{body}: {said:?}");
        assert!(
            said[0].starts_with(path) || words.contains("once"),
            "{said:?}"
        );
    }

    #[track_caller]
    fn accepted(path: &str, body: &str) {
        let said = check(path, &format!("//! A file.\n{body}\n"));
        assert!(said.is_empty(), "{body}: {said:?}");
    }

    #[test]
    fn a_module_uses_only_modules_above_it() {
        accepted(
            "src/high/a.rs",
            "use crate::low::X;\nuse crate::high::b::Y;",
        );
        refused(
            "src/low.rs",
            "use crate::high::X;",
            "src/low.rs:2: `low` uses `high`",
        );
        refused(
            "src/low/deep/a.rs",
            "fn f() { crate::high::f() }",
            "declares below",
        );
        refused("src/low.rs", "use super::high::X;", "declares below");
        refused("src/low/mod.rs", "use super::high::X;", "declares below");
        refused(
            "src/low/a.rs",
            "use super::super::high::X;",
            "declares below",
        );
        accepted("src/low/a.rs", "use super::high::X;");
        accepted("src/low.rs", "mod tests { use super::high; }");
        refused(
            "src/low.rs",
            "mod tests { use super::super::high; }",
            "declares below",
        );
        refused(
            "src/low.rs",
            "use crate::Helper;",
            "no module of src/lib.rs",
        );
        refused("src/other.rs", "fn f() {}", "does not declare `other`");
        accepted(
            "src/low.rs",
            "// crate::high\nconst A: &str = \"crate::high\"; /* crate::high */",
        );
        accepted(
            "src/low.rs",
            "fn f<'a>(x: &'a str) { x.find('\"'); } // \" crate::high",
        );
    }

    #[test]
    fn one_use_of_the_crate_per_line() {
        refused("src/high.rs", "use crate::low::{X, Y};", "without braces");
        refused(
            "src/high.rs",
            "use crate::low::{\n X,\n Y};",
            "src/high.rs:2:",
        );
        accepted("src/high.rs", "use std::{fs, io};");
    }

    #[test]
    fn a_file_that_decides_does_not_act() {
        for act in [
            "use tokio::sync::mpsc;",
            "async fn f() {}",
            "fn f() { x.spawn(y); }",
            "use std::fs::File;",
            "fn f() { std::net::lookup(); }",
            "use std::time::Instant;",
            "fn f() { Uuid::now_v7(); }",
        ] {
            refused(
                "src/high.rs",
                &format!("//! Decides only.\n{act}"),
                "says `Decides only`",
            );
            accepted("src/high.rs", act);
        }
        accepted(
            "src/high.rs",
            "//! Decides only.\nuse std::net::SocketAddr;",
        );
        refused(
            "src/high.rs",
            "//! It is Decides\n//! only, over two lines.\nuse tokio::sync::mpsc;",
            "says `Decides only`",
        );
        accepted(
            "src/high.rs",
            "//! Decides only.\n#[cfg(test)]\nmod tests { async fn f() {} }",
        );
        refused(
            "src/high.rs",
            "//! Decides only.\nmod inner { async fn f() {} }",
            "names `async`",
        );
    }

    #[test]
    fn a_foreign_library_has_one_home() {
        for (name, home) in [
            ("openraft", "src/raft/"),
            ("sled", "src/engine/sled.rs"),
            ("libc", "src/engine/sled.rs"),
            ("tonic", "src/wire/ and src/server/grpc/"),
            ("bincode", "src/codec/"),
            ("axum", "src/server/http/"),
            ("rand", "src/env/rng.rs"),
        ] {
            refused("src/high.rs", &format!("use {name}::X;"), home);
            refused("src/high.rs", &format!("fn f() {{ {name}::f(); }}"), home);
            accepted("src/high.rs", &format!("mod {name};\nuse {name}::X;"));
            accepted(
                "src/high.rs",
                &format!("use crate::low::{name};\nfn f() {{ {name}::f(); }}"),
            );
        }
        refused(
            "src/high.rs",
            "use std::time::SystemTime;",
            "src/env/clock.rs",
        );
        accepted("src/env/clock.rs", "use std::time::SystemTime;");
        accepted("src/env/rng.rs", "use rand::Rng;");
        refused(
            "src/engine/memory.rs",
            "use sled::Db;",
            "src/engine/sled.rs",
        );
    }

    #[test]
    fn the_one_allowance_for_unsafe_code() {
        accepted("src/engine/sled.rs", "#[allow(unsafe_code)]\nfn f() {}");
        refused("src/engine/sled.rs", "fn f() {}", "must stand once");
        refused(
            "src/engine/sled.rs",
            "#[allow(unsafe_code)]\nfn f() {}\n#[allow(unsafe_code)]\nfn g() {}",
            "must stand once",
        );
        let said = check("src/high.rs", "//! A file.\n#![allow(unsafe_code)]\n");
        assert_eq!(said.len(), 2, "{said:?}");
    }

    #[test]
    fn a_mutant_is_one_question() {
        let used = "use crate::env::mutant;\nuse crate::env::mutant::Mutant;\n";
        accepted(
            "src/high.rs",
            &format!("{used}fn f() {{ if mutant::lives(Mutant::A) {{}} }}"),
        );
        for wrong in [
            "fn f(mutant: Mutant) {}",
            "fn f() { let a = Mutant::A; }",
            "fn f() { mutant::other(); }",
        ] {
            refused("src/high.rs", &format!("{used}{wrong}"), "asked for as");
        }
        let list = "macro_rules! mutants { () => {} }\nmutants! { A: \"is wrong\", }";
        refused("src/env/mutant.rs", list, "the mutant A is nowhere");
    }

    #[test]
    fn every_file_says_what_it_is_and_is_finished() {
        assert_eq!(check("src/high.rs", "use std::fs;\n").len(), 1);
        assert_eq!(check("tests/a.rs", "//!\n").len(), 1);
        refused("tests/a.rs", "fn f() { todo!() }", "not finished");
        refused(
            "src/high.rs",
            "fn f() { unimplemented!(\"x\") }",
            "not finished",
        );
        accepted("src/high.rs", "fn todo() {}");
    }
}
