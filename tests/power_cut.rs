//! Power cuts of three nodes at once: what was answered is on the disk.
//!
//! Each node has an ext4 file system on a loop device. For a cut the processes are stopped where they
//! are, the file systems are shut down without a flush of their journals, the processes are killed,
//! and the disks are mounted again. What was only in the page cache is gone. A copy of a live
//! directory would show the page cache and prove nothing.
//!
//! `tests/power-cut-must-fail` runs this with the two barriers taken out of the program and shows
//! that data is lost then.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

use quorate::testkit::history::History;
use quorate::testkit::workload;
use quorate::testkit::workload::Workload;
use quorate::types::KeyRange;
use quorate::types::request::ReadKind;
use support::READY;
use support::Rig;
use support::disk::Disk;
use support::disk::power_tool;
use support::disk::run;

const ROUNDS: u64 = 20;
/// Trials of a program with a barrier taken out; each begins with empty disks.
const TRIALS: u64 = 8;

/// Why there can be no power cut here; none when there can. Fails instead where
/// `QUORATE_REQUIRE_LOOP_DEVICES` is set.
fn cannot_run(test: &str) -> bool {
    let directory = tempfile::tempdir().unwrap();
    let why = if support::skipped("power_cut") {
        "QUORATE_SKIP names it".to_owned()
    } else {
        match Disk::new(directory.path(), "probe") {
            Ok(_) => return false,
            Err(error) => format!("it needs root, loop devices, e2fsprogs and cc: {error}"),
        }
    };
    support::skip(
        "QUORATE_REQUIRE_LOOP_DEVICES",
        &format!("power_cut::{test}"),
        &why,
    );
    true
}

#[test]
fn the_method_loses_what_was_not_synced_and_keeps_what_was() {
    if cannot_run("the_method") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    for round in 0..2 {
        let (said, kept) = cut_a_writer(directory.path(), "nosync", round).unwrap();
        assert!(kept < said, "nothing was lost: {said} written, {kept} kept");
        let (said, kept) = cut_a_writer(directory.path(), "sync", round).unwrap();
        assert!(kept >= said, "synced and lost: {said} said, {kept} kept");
    }
}

/// Records that a writer said it had written before the power was cut, and records found after.
fn cut_a_writer(directory: &Path, mode: &str, round: u64) -> io::Result<(u64, u64)> {
    let disk = Disk::new(directory, &format!("{mode}{round}"))?;
    let file = disk.path().join("records");
    let mut writer = Command::new(power_tool(directory)?)
        .arg("write")
        .arg(&file)
        .arg(mode)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
    let said = lines.by_ref().take(200).count() as u64;
    run(Command::new("kill").args(["-STOP", &writer.id().to_string()]))?;
    disk.cut()?;
    writer.kill()?;
    writer.wait()?;
    let said = said + lines.map_while(Result::ok).count() as u64;
    disk.restore(round)?;
    Ok((said, whole_records(&file)))
}

/// Records at the start of the file that hold what was written.
fn whole_records(file: &Path) -> u64 {
    let bytes = fs::read(file).unwrap_or_default();
    let whole = bytes
        .chunks_exact(4096)
        .zip(1u64..)
        .take_while(|(record, number)| {
            let letter = b'a' + (number % 26) as u8;
            record.iter().all(|byte| *byte == letter)
        });
    whole.count() as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_lose_no_answered_write_in_power_cuts_of_all_at_once() {
    if cannot_run("three_nodes") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    if let Ok(binary) = std::env::var("QUORATE_WITHOUT_BARRIER") {
        return count_losses(&PathBuf::from(binary), directory.path()).await;
    }
    let binary = Path::new(env!("CARGO_BIN_EXE_quorate"));
    let mut site = Site::new(binary, directory.path());
    let mut total = History::default();
    for round in 0..ROUNDS {
        // Every other cut comes behind a checkpoint that has let the log be purged.
        let history = site.round(round, round % 2 == 1).await;
        total.merge(history.unwrap_or_else(|lost| panic!("round {round}: {lost}")));
    }
    let everything = workload::scan(&site.rig.nodes, KeyRange::ALL, ReadKind::Linearizable).await;
    support::none_of(&total.check_newest(&everything.unwrap()), "all rounds");
    println!(
        "{ROUNDS} power cuts of three nodes: {:?}, none lost",
        total.counts()
    );
}

/// A program without a barrier must lose data, or the method proves nothing.
async fn count_losses(binary: &Path, directory: &Path) {
    let mut lost = 0;
    for trial in 0..TRIALS {
        let directory = directory.join(trial.to_string());
        fs::create_dir(&directory).unwrap();
        let mut site = Site::new(binary, &directory);
        match site.round(trial, true).await {
            Ok(history) => println!("trial {trial}: {:?}, none lost", history.counts()),
            Err(what) => {
                lost += 1;
                println!("trial {trial}: {what}");
            }
        }
    }
    println!("{lost} of {TRIALS} power cuts lost data");
    assert!(lost > 0, "without its barrier the program lost nothing");
}

async fn busy(writers: &Workload, count: usize, what: &str) -> Result<(), String> {
    let reached = writers.wait_answered(count, READY).await;
    let missing = format!("{what}: less than {count} writes in {READY:?}");
    reached.then_some(()).ok_or(missing)
}

/// Three nodes with a disk each.
struct Site {
    rig: Rig,
    // Behind the rig: the processes end before their disks are unmounted.
    disks: Vec<Disk>,
}

impl Site {
    fn new(binary: &Path, directory: &Path) -> Site {
        let names = ["n1", "n2", "n3"].into_iter();
        let disks = names.map(|name| Disk::new(directory, name).unwrap());
        let disks = disks.collect();
        Site {
            rig: Rig::new(binary, directory, support::SMALL_LOG),
            disks,
        }
    }

    /// Writes, cuts the power of all nodes, restores it, and holds them to their answers; what was
    /// lost otherwise.
    async fn round(&mut self, round: u64, behind_checkpoint: bool) -> Result<History, String> {
        let prefix = format!("cut{round:02}/");
        self.rig.processes.start_all().unwrap();
        let before = self.ready().await?;
        let writers = support::write(&self.rig.nodes, &prefix, round);
        busy(&writers, 150, "before the cut").await?;
        let deadline = tokio::time::Instant::now() + READY;
        while behind_checkpoint && self.ready().await? <= before {
            if tokio::time::Instant::now() > deadline {
                return Err(format!("no log was purged within {READY:?}"));
            }
            busy(&writers, 50, "until the log is purged").await?;
        }
        self.cut(round).unwrap();
        self.rig.processes.start_all().unwrap();
        self.ready().await?;
        busy(&writers, 50, "after the cut").await?;
        let mut history = writers.stop().await;
        workload::settle(&mut history, &self.rig.nodes, READY).await;
        let complaints = workload::verify(&history, &prefix, &self.rig.nodes).await;
        let complaints = complaints.map_err(|error| error.to_string())?;
        if complaints.is_empty() && history.counts().unknown == 0 {
            return Ok(history);
        }
        let some = complaints.iter().take(5).cloned().collect::<Vec<_>>();
        let counts = history.counts();
        let count = complaints.len();
        Err(format!(
            "{counts:?}, {count} complaints, among them\n{}",
            some.join("\n")
        ))
    }

    /// Ready, and how far every log is purged.
    async fn ready(&mut self) -> Result<u64, String> {
        let all = [0, 1, 2];
        let ready = self.rig.processes.wait_ready(&all, &self.rig.nodes, READY);
        let statuses = ready.await.map_err(|error| error.to_string())?;
        let purged = statuses
            .iter()
            .map(|status| support::shard(status).purged_index);
        Ok(purged.min().unwrap_or_default())
    }

    fn cut(&mut self, round: u64) -> io::Result<()> {
        (0..3).try_for_each(|node| self.rig.processes.pause(node))?;
        self.disks.iter().try_for_each(Disk::cut)?;
        self.rig.processes.kill_all()?;
        self.disks.iter().try_for_each(|disk| disk.restore(round))
    }
}
