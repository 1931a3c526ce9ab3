//! Who speaks and who is meant, in the headers of every call between nodes. Decides only.

use std::sync::Arc;
use std::sync::OnceLock;

use tonic::metadata::AsciiMetadataValue;
use tonic::metadata::MetadataMap;

use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::error::Error;
use crate::error::Result;
use crate::types::ClusterId;
use crate::types::Incarnation;
use crate::types::NodeId;
use crate::types::node::Identity;
use crate::types::node::Member;

/// Set where a node sends a client's call on; believed on the node port only.
pub const FORWARDED_HEADER: &str = "quorate-forwarded";
const CLUSTER_HEADER: &str = "quorate-cluster";
const TO_HEADER: &str = "quorate-to";
const INCARNATION_HEADER: &str = "quorate-incarnation";
const FROM_HEADER: &str = "quorate-from";

/// A node's identity, which it learns when its cluster has formed and never changes after that.
/// Clones share it. Until it is set, the node answers nothing but Form.
#[derive(Debug, Clone, Default)]
pub struct IdentityCell(Arc<OnceLock<Identity>>);

impl IdentityCell {
    /// Not known yet.
    pub fn new() -> IdentityCell {
        IdentityCell::default()
    }

    /// Known from the start.
    pub fn of(identity: Identity) -> IdentityCell {
        let cell = IdentityCell::default();
        let _ = cell.0.set(identity);
        cell
    }

    /// Who the node is; `None` while its cluster forms.
    pub fn get(&self) -> Option<Identity> {
        self.0.get().copied()
    }

    /// Says who the node is. Fails with the identity that it has already.
    pub fn set(&self, identity: Identity) -> Result<(), Identity> {
        self.0
            .set(identity)
            .map_err(|_| self.0.get().copied().unwrap_or(identity))
    }
}

/// The headers with which `from` speaks to `to`.
pub fn headers(from: &Identity, to: &Member) -> MetadataMap {
    let mut headers = MetadataMap::with_capacity(5);
    let mut insert = |name: &'static str, value: String| {
        let value = AsciiMetadataValue::try_from(value).expect("digits are ASCII");
        headers.insert(name, value);
    };
    insert(CLUSTER_HEADER, from.cluster.to_string());
    insert(TO_HEADER, to.id.0.to_string());
    insert(INCARNATION_HEADER, to.incarnation.to_string());
    insert(FROM_HEADER, from.node.0.to_string());
    headers
}

/// Whether a call with these headers is meant for `me`; gives the node that sent it. An error has
/// both values.
pub fn check(headers: &MetadataMap, me: &Identity) -> Result<NodeId> {
    let expected = ClusterId(hex(headers, CLUSTER_HEADER)?);
    if expected != me.cluster {
        return Err(Error::WrongCluster {
            expected,
            actual: me.cluster,
        });
    }
    let expected = NodeId(number(headers, TO_HEADER)?);
    let expected_incarnation = Incarnation(hex(headers, INCARNATION_HEADER)?);
    let is_me = expected == me.node && expected_incarnation == me.incarnation;
    if !is_me && !mutant::lives(Mutant::AnswersForAnother) {
        return Err(Error::WrongNode {
            expected,
            expected_incarnation,
            actual: me.node,
            actual_incarnation: me.incarnation,
        });
    }
    sender(headers)
}

/// The node that says it has sent a call.
pub fn sender(headers: &MetadataMap) -> Result<NodeId> {
    Ok(NodeId(number(headers, FROM_HEADER)?))
}

fn text<'a>(headers: &'a MetadataMap, name: &'static str) -> Result<&'a str> {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.ok_or_else(|| Error::invalid(name, "a call between nodes needs this header"))
}

fn number(headers: &MetadataMap, name: &'static str) -> Result<u64> {
    let text = text(headers, name)?;
    text.parse()
        .map_err(|_| Error::invalid(name, format!("{text:?} is not a number")))
}

fn hex(headers: &MetadataMap, name: &'static str) -> Result<[u8; 16]> {
    let text = text(headers, name)?;
    let number = (text.len() == 32).then(|| u128::from_str_radix(text, 16).ok());
    let number = number
        .flatten()
        .ok_or_else(|| Error::invalid(name, format!("{text:?} is not 32 hexadecimal digits")))?;
    Ok(number.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(cluster: u8, node: u64, incarnation: u8) -> Identity {
        Identity {
            cluster: ClusterId([cluster; 16]),
            node: NodeId(node),
            incarnation: Incarnation([incarnation; 16]),
        }
    }

    fn member(identity: &Identity) -> Member {
        Member {
            id: identity.node,
            incarnation: identity.incarnation,
            name: String::new(),
            node_address: String::new(),
            client_address: String::new(),
        }
    }

    #[test]
    fn only_the_node_meant_accepts_a_call() {
        let (from, to) = (identity(1, 1, 1), identity(1, 2, 0xa2));
        let headers = headers(&from, &member(&to));
        assert_eq!(check(&headers, &to), Ok(NodeId(1)));
        for other in [identity(1, 3, 0xa2), identity(1, 2, 3)] {
            assert!(matches!(
                check(&headers, &other),
                Err(Error::WrongNode { .. })
            ));
        }
        let other = check(&headers, &identity(9, 2, 0xa2));
        assert!(matches!(other, Err(Error::WrongCluster { .. })));
        assert!(matches!(
            check(&MetadataMap::new(), &to),
            Err(Error::Invalid { .. })
        ));
    }

    #[test]
    fn an_identity_is_set_once() {
        let cell = IdentityCell::new();
        assert_eq!(cell.get(), None);
        assert_eq!(cell.set(identity(1, 1, 1)), Ok(()));
        assert_eq!(cell.clone().set(identity(1, 2, 2)), Err(identity(1, 1, 1)));
        assert_eq!(cell.get(), Some(identity(1, 1, 1)));
    }
}
