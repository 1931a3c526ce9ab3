//! Keyspaces of the cluster in memory. A walk through a hash keyspace goes over all its keys at once.

use quorate::error::Error;
use quorate::error::Result;
use quorate::types::KeyRange;
use quorate::types::keyspace::Definition;
use quorate::types::keyspace::Keyspace;
use quorate::types::keyspace::KeyspaceName;
use quorate::types::keyspace::Layout;
use quorate::types::request::Condition;
use quorate::types::request::KeyValue;
use quorate::types::request::Operation;
use quorate::types::request::WriteKind;
use quorate::wire::request::Get;
use quorate::wire::request::KeyRequest;
use quorate::wire::request::Page;
use quorate::wire::request::Request;
use quorate::wire::request::Response;
use quorate::wire::request::Scan;
use quorate::wire::request::Unordered;
use quorate::wire::request::Within;

use super::State;

impl State {
    pub(super) fn create_keyspace(&mut self, keyspace: Keyspace) -> Result<()> {
        if self
            .keyspaces
            .iter()
            .any(|known| known.keyspace.overlaps(&keyspace))
        {
            return Err(Error::invalid("create_keyspace", "its prefix is taken"));
        }
        self.keyspaces.push(Definition {
            keyspace,
            retired: false,
        });
        Ok(())
    }

    pub(super) fn delete_keyspace(&mut self, name: &KeyspaceName) -> Result<()> {
        let range = self.keyspace(name)?.range();
        if self.data.keys().any(|key| range.contains(key)) {
            return Err(Error::invalid("delete_keyspace", "it has keys"));
        }
        let mut known = self.keyspaces.iter_mut();
        let known = known.find(|known| known.keyspace.name == *name);
        known.unwrap().retired = true;
        Ok(())
    }

    fn keyspace(&self, name: &KeyspaceName) -> Result<Keyspace> {
        let mut known = self.keyspaces.iter().filter(|known| !known.retired);
        let known = known.find(|known| known.keyspace.name == *name);
        let name = name.to_string();
        known
            .map(|known| known.keyspace.clone())
            .ok_or(Error::NoKeyspace { name })
    }

    /// The request for stored keys.
    pub(super) fn stored(&self, within: &Within) -> Result<Request> {
        let keyspace = self.keyspace(&within.keyspace)?;
        let stored = |key: &[u8]| keyspace.stored_key(key);
        let all = |range: &KeyRange| match keyspace.layout {
            Layout::Ordered => keyspace.stored_range(range),
            Layout::Hash(_) => keyspace.range(),
        };
        Ok(match within.request.clone() {
            KeyRequest::Get(get) => Request::Get(Get {
                key: stored(&get.key),
                ..get
            }),
            KeyRequest::Scan(scan) => Request::Scan(Scan {
                range: all(&scan.range),
                ..scan
            }),
            KeyRequest::Write(mut write) => {
                match &mut write.kind {
                    WriteKind::Range { range, .. } => *range = all(range),
                    WriteKind::Keys {
                        conditions,
                        operations,
                    } => {
                        for operation in operations {
                            let (Operation::Put { key, .. } | Operation::Delete { key }) =
                                operation;
                            *key = stored(key);
                        }
                        for condition in conditions {
                            let (Condition::Version { key, .. }
                            | Condition::Value { key, .. }
                            | Condition::Exists { key }) = condition;
                            *key = stored(key);
                        }
                    }
                }
                Request::Write(write)
            }
            KeyRequest::BatchGet(_) => return Err(Error::invalid("keys", "not in this cluster")),
        })
    }

    /// The answer in the words of the keyspace; a page is read to its end at once.
    pub(super) fn of_keyspace(&self, within: &Within, response: Response) -> Result<Response> {
        let keyspace = self.keyspace(&within.keyspace)?;
        let Response::Scan(page) = response else {
            return Ok(response);
        };
        let items = page.items.into_iter().map(|item| KeyValue {
            key: keyspace.user_key(&item.key).unwrap(),
            ..item
        });
        Ok(Response::Scan(Page {
            items: items.collect(),
            rest: None,
            rest_cut: None,
            unordered: match keyspace.layout {
                Layout::Ordered => None,
                Layout::Hash(_) => Some(Unordered::default()),
            },
            ..page
        }))
    }
}
