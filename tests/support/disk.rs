//! An ext4 file system on a loop device whose power can be cut. Needs root.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

/// One disk with its file system, mounted. Dropping it unmounts it.
pub struct Disk {
    image: PathBuf,
    mounted_at: PathBuf,
    power: PathBuf,
}

/// Large enough for a few segments of the log and an engine; sparse, so it costs what is written.
const DISK_BYTES: u64 = 1024 * 1024 * 1024;

impl Disk {
    /// Makes and mounts a disk at `directory/name`; its image is `directory/name.disk`.
    pub fn new(directory: &Path, name: &str) -> io::Result<Disk> {
        let disk = Disk {
            image: directory.join(format!("{name}.disk")),
            mounted_at: directory.join(name),
            power: power_tool(directory)?,
        };
        fs::create_dir_all(&disk.mounted_at)?;
        fs::File::create(&disk.image)?.set_len(DISK_BYTES)?;
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F"])
            .arg(&disk.image))?;
        disk.mount(DATA_MODES[0])?;
        // A node expects its directory to be empty.
        fs::remove_dir(disk.mounted_at.join("lost+found"))?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mounted_at
    }

    /// From now on nothing reaches the disk. Whoever writes to it should stand still already, or it
    /// sees errors that a power cut does not show.
    pub fn cut(&self) -> io::Result<()> {
        run(Command::new(&self.power).arg("cut").arg(&self.mounted_at))
    }

    /// Power is back: mounts the disk again, which replays its journal. Nobody may use it before. The
    /// way in which data and journal are ordered alternates with `round`.
    pub fn restore(&self, round: u64) -> io::Result<()> {
        run(Command::new("umount").arg(&self.mounted_at))?;
        self.mount(DATA_MODES[round as usize % DATA_MODES.len()])
    }

    fn mount(&self, data_mode: &str) -> io::Result<()> {
        // Rare commits of the journal: what was not synced should not get there by luck.
        let options = format!("loop,commit=300,data={data_mode}");
        run(Command::new("mount")
            .args(["-o", &options])
            .arg(&self.image)
            .arg(&self.mounted_at))
    }
}

const DATA_MODES: [&str; 2] = ["ordered", "writeback"];

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = run(Command::new("umount").arg(&self.mounted_at));
        if let Err(error) = unmounted {
            eprintln!("{error}");
            let _ = run(Command::new("umount").arg("-l").arg(&self.mounted_at));
        }
    }
}

/// Builds the helper; where it is.
pub fn power_tool(directory: &Path) -> io::Result<PathBuf> {
    let tool = directory.join("power");
    if !tool.exists() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/power.c");
        run(Command::new("cc").arg("-o").arg(&tool).arg(source))?;
    }
    Ok(tool)
}

/// Runs a command; its words and what it said are the error.
pub fn run(command: &mut Command) -> io::Result<()> {
    let output = command
        .output()
        .map_err(|error| io::Error::other(format!("{command:?}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(io::Error::other(format!("{command:?}: {said}")))
}
