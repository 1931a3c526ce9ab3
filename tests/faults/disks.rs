//! Small disks that can be filled up: each node's data is on a file system of its own in memory. Needs
//! root.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use crate::support::disk::run;

/// The disks of some nodes, at `<directory>/n1` and so on, where a rig looks for them. Dropping them
/// unmounts them.
#[derive(Debug)]
pub(crate) struct Disks {
    mounted: Vec<PathBuf>,
}

/// Of each disk.
pub(crate) const DISK_MIB: u64 = 512;

impl Disks {
    /// Makes and mounts so many.
    pub(crate) fn new(directory: &Path, count: usize) -> io::Result<Disks> {
        let mut disks = Disks {
            mounted: Vec::new(),
        };
        for number in 1..=count {
            let at = directory.join(format!("n{number}"));
            fs::create_dir_all(&at)?;
            let size = format!("size={DISK_MIB}m");
            run(Command::new("mount")
                .args(["-t", "tmpfs", "-o", &size, "quorate-test"])
                .arg(&at))?;
            disks.mounted.push(at);
        }
        Ok(disks)
    }

    /// Fills a disk up to its last byte, as somebody else's file would.
    pub(crate) fn fill(&self, disk: usize) {
        let mut ballast = File::options()
            .create(true)
            .append(true)
            .open(self.ballast(disk))
            .unwrap();
        let block = vec![0xee; 64 * 1024];
        let full = loop {
            if let Err(error) = ballast.write_all(&block) {
                break error;
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::StorageFull, "{full}");
    }

    /// Gives the room back.
    pub(crate) fn make_room(&self, disk: usize) {
        fs::remove_file(self.ballast(disk)).unwrap();
    }

    fn ballast(&self, disk: usize) -> PathBuf {
        self.mounted[disk].join("ballast")
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for at in &self.mounted {
            // The last holder of a file there may only just be gone.
            if let Err(error) = run(Command::new("umount").arg("-l").arg(at)) {
                eprintln!("{error}");
            }
        }
    }
}
