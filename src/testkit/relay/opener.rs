//! Which of our processes opened a connection. All nodes are on one address, so the connection itself
//! does not say; the operating system does: the other end of it is a socket with a number
//! (`/proc/self/net/tcp`), and a process that has it open shows that number (`/proc/<id>/fd`).

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::SocketAddrV4;
use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;

use crate::env::tasks::offload;

/// The process of each node.
pub(super) type Processes = BTreeMap<usize, u32>;

/// The table of sockets is not read at one moment, so that one can be missed, and a node that was just
/// started may not have been named yet: look again.
const LOOKS: u32 = 25;
/// How long until the next look.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The node that opened the connection from `from` to the door at `to`; none when it is gone already,
/// or nobody's. Cancel-safe.
pub(super) async fn find(
    from: SocketAddr,
    to: SocketAddr,
    mut processes: watch::Receiver<Processes>,
) -> Option<usize> {
    let (SocketAddr::V4(from), SocketAddr::V4(to)) = (from, to) else {
        return None;
    };
    for _ in 0..LOOKS {
        let known = processes.borrow_and_update().clone();
        let found = offload(move || look(from, to, &known)).await;
        if found.is_some() {
            return found;
        }
        // Whether it has changed or not: the next look says.
        let _ = tokio::time::timeout(LOOK_AGAIN, processes.changed()).await;
    }
    None
}

fn look(from: SocketAddrV4, to: SocketAddrV4, processes: &Processes) -> Option<usize> {
    let table = fs::read_to_string("/proc/self/net/tcp").ok()?;
    let socket = format!("socket:[{}]", socket_number(&table, from, to)?);
    let mut owners = processes.iter();
    let owner = owners.find(|(_, process)| has_open(**process, Path::new(&socket)));
    owner.map(|(node, _)| *node)
}

/// The number of the socket at `local` that is connected to `remote`, in the kernel's table.
fn socket_number(table: &str, local: SocketAddrV4, remote: SocketAddrV4) -> Option<u64> {
    let ends = [written(local), written(remote)];
    table.lines().find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let number = columns.get(9)?.parse::<u64>().ok()?;
        // A connection that nobody has open any more is shown with the number 0.
        (columns[1..3] == ends && number != 0).then_some(number)
    })
}

/// An address as the kernel writes it: the four bytes as one number of this machine's byte order.
fn written(address: SocketAddrV4) -> String {
    let ip: Ipv4Addr = *address.ip();
    let number = u32::from_ne_bytes(ip.octets());
    format!("{number:08X}:{:04X}", address.port())
}

fn has_open(process: u32, socket: &Path) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{process}/fd")) else {
        return false;
    };
    let mut links = open.flatten().map(|entry| fs::read_link(entry.path()));
    links.any(|link| link.is_ok_and(|link| link == socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_found_by_both_its_ends() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            \x20  0: 0100007F:1CE8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1 0 100 0 0 10 0\n\
            \x20  1: 0100007F:D2F0 0100007F:1CE9 01 00000000:00000000 00:00000000 00000000     0        0 22 1 0 20 4 30 10 -1\n\
            \x20  2: 0100007F:D2F0 0100007F:1CE8 01 00000000:00000000 00:00000000 00000000     0        0 33 1 0 20 4 30 10 -1\n\
            \x20  3: 0100007F:D2F1 0100007F:1CE8 06 00000000:00000000 03:00000000 00000000     0        0 0 3 0\n";
        let at = |port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        // This machine's byte order is the one of the table above, unless it is a rare one.
        if cfg!(target_endian = "little") {
            assert_eq!(socket_number(table, at(54_000), at(7_400)), Some(33));
            assert_eq!(socket_number(table, at(54_001), at(7_400)), None);
            assert_eq!(socket_number(table, at(7_400), at(54_000)), None);
            assert_eq!(socket_number("", at(7_400), at(54_000)), None);
        }
    }
}
