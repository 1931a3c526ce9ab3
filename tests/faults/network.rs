//! A network of namespaces: each node has one of its own with an address of its own, all are linked
//! by a bridge, and packets between any two can be dropped, each direction by itself. Needs root, and
//! the commands `ip` and `nft`.
//!
//! A way is cut where its packets arrive: the receiver's namespace drops what comes from the sender's
//! address. This process reaches every node whatever is cut. The bridge is in a namespace too, so that
//! the machine's own rules for packets do not matter.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

use quorate::testkit::processes::Place;
use quorate::testkit::relay::Way;

use crate::support::disk::run;

/// So many nodes and their network. Dropping it removes it; what a test that was killed left behind is
/// removed when the next one is made.
#[derive(Debug)]
pub(crate) struct Network {
    name: String,
    subnet: [u8; 3],
    nodes: usize,
}

impl Network {
    /// Makes the namespaces, the bridge, and the links.
    pub(crate) fn new(nodes: usize) -> io::Result<Network> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        remove_leftovers()?;
        let process = std::process::id();
        let made = MADE.fetch_add(1, Ordering::Relaxed);
        let [.., third] = (process + made).to_be_bytes();
        // Removed also when the rest cannot be made.
        let network = Network {
            name: format!("{PREFIX}{process}-{made}"),
            // Set aside for tests of networks: nobody's real addresses.
            subnet: [198, 18, third],
            nodes,
        };
        network.make_hub()?;
        (0..nodes).try_for_each(|node| network.make_node(node))?;
        Ok(network)
    }

    /// Where the nodes run.
    pub(crate) fn places(&self) -> Vec<Place> {
        let places = (0..self.nodes).map(|node| Place {
            address: self.address(node),
            before: ["ip", "netns", "exec", &self.namespace(node)]
                .map(str::to_owned)
                .to_vec(),
        });
        places.collect()
    }

    /// From now on no packet arrives on these ways. Connections are not told.
    pub(crate) fn cut(&self, ways: &[Way]) -> io::Result<()> {
        ways.iter().try_for_each(|way| {
            let sender = self.address(way.from);
            let element = format!("add element inet faults cut {{ {sender} }}");
            self.nft(way.to, &element)
        })
    }

    /// From now on every packet arrives.
    pub(crate) fn heal(&self) -> io::Result<()> {
        (0..self.nodes).try_for_each(|node| self.nft(node, "flush set inet faults cut"))
    }

    fn make_hub(&self) -> io::Result<()> {
        let hub = self.hub();
        ip(&["netns", "add", &hub])?;
        ip(&["-n", &hub, "link", "set", "lo", "up"])?;
        ip(&["-n", &hub, "link", "add", "bridge", "type", "bridge"])?;
        ip(&["-n", &hub, "link", "set", "bridge", "up"])?;
        let here = &self.name;
        ip(&[
            "link", "add", here, "type", "veth", "peer", "name", "here", "netns", &hub,
        ])?;
        self.plug("here")?;
        let address = format!("{}/24", self.host(HERE));
        ip(&["address", "add", &address, "dev", here])?;
        ip(&["link", "set", here, "up"])
    }

    fn make_node(&self, node: usize) -> io::Result<()> {
        let (hub, inside) = (self.hub(), self.namespace(node));
        let plug = format!("n{}", node + 1);
        ip(&["netns", "add", &inside])?;
        ip(&["-n", &inside, "link", "set", "lo", "up"])?;
        ip(&[
            "-n", &inside, "link", "add", "eth0", "type", "veth", "peer", "name", &plug, "netns",
            &hub,
        ])?;
        self.plug(&plug)?;
        let address = format!("{}/24", self.address(node));
        ip(&["-n", &inside, "address", "add", &address, "dev", "eth0"])?;
        ip(&["-n", &inside, "link", "set", "eth0", "up"])?;
        self.nft(node, RULES)
    }

    fn plug(&self, link: &str) -> io::Result<()> {
        let hub = self.hub();
        ip(&["-n", &hub, "link", "set", link, "master", "bridge"])?;
        ip(&["-n", &hub, "link", "set", link, "up"])
    }

    fn nft(&self, node: usize, rules: &str) -> io::Result<()> {
        let inside = self.namespace(node);
        run(Command::new("ip").args(["netns", "exec", &inside, "nft", rules]))
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.name)
    }

    fn namespace(&self, node: usize) -> String {
        format!("{}-n{}", self.name, node + 1)
    }

    fn address(&self, node: usize) -> Ipv4Addr {
        self.host(u8::try_from(node + 1).unwrap())
    }

    fn host(&self, host: u8) -> Ipv4Addr {
        let [first, second, third] = self.subnet;
        Ipv4Addr::new(first, second, third, host)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// What a namespace's name begins with; the id of the process that made it follows.
const PREFIX: &str = "quo";
/// This process's place in the network.
const HERE: u8 = 254;
/// What each node's namespace drops.
const RULES: &str = "add table inet faults; \
    add set inet faults cut { type ipv4_addr; }; \
    add chain inet faults arriving { type filter hook input priority 0; }; \
    add rule inet faults arriving ip saddr @cut drop";

/// Removes the namespaces of a network, and with them all that is in them.
fn remove(name: &str) {
    for namespace in namespaces() {
        if namespace.starts_with(&format!("{name}-"))
            && let Err(error) = ip(&["netns", "delete", &namespace])
        {
            eprintln!("{error}");
        }
    }
}

/// Removes networks whose process is gone.
fn remove_leftovers() -> io::Result<()> {
    for namespace in namespaces() {
        let Some(named) = namespace.strip_prefix(PREFIX) else {
            continue;
        };
        let process = named.split('-').next().unwrap_or_default();
        let ours = !process.is_empty() && process.bytes().all(|byte| byte.is_ascii_digit());
        if ours && !Path::new("/proc").join(process).exists() {
            ip(&["netns", "delete", &namespace])?;
        }
    }
    Ok(())
}

fn namespaces() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/run/netns") else {
        return Vec::new();
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    names.filter_map(|name| name.into_string().ok()).collect()
}

fn ip(arguments: &[&str]) -> io::Result<()> {
    run(Command::new("ip").args(arguments))
}
