//! The network between a test and the nodes.

use quorate::testkit::workload::Nodes;
use quorate::wire::channel::GrpcChannel;
use quorate::wire::request::Channel;

/// The nodes that serve clients at `addresses`, in that order. Connects when first asked something.
pub fn connect(addresses: &[String]) -> Nodes {
    let channel = GrpcChannel::of_client();
    let nodes = addresses.iter().map(|address| channel.address(address));
    nodes.collect()
}
