//! Several keys of several shards: who is asked for which of them, and the answers in the order asked.
//! Decides only.

use crate::error::Error;
use crate::error::Result;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::request::Answered;
use crate::types::request::Versioned;
use crate::wire::request::BatchGet;

/// A batch of keys on its way: what was found and what is still to be asked.
#[derive(Debug)]
pub struct Gather {
    asked: BatchGet,
    /// For each key, in the order asked; the outer `None` is not answered yet.
    found: Vec<Option<Option<Versioned>>>,
    answered: Vec<Answered>,
}

/// Keys that are asked of one shard.
#[derive(Debug)]
pub struct Part {
    /// What is asked.
    pub get: BatchGet,
    places: Vec<usize>,
    /// The shard's keys; `None` where the shard is not known.
    range: Option<KeyRange>,
}

impl Gather {
    /// Nothing is answered yet.
    pub fn new(asked: BatchGet) -> Gather {
        Gather {
            found: vec![None; asked.keys.len()],
            answered: Vec::new(),
            asked,
        }
    }

    /// What is still to be asked, a part for each shard. `shard_of` gives the range of the shard that
    /// holds a key, which must contain it; keys of which it gives none are one part together.
    pub fn parts(&self, mut shard_of: impl FnMut(&Key) -> Option<KeyRange>) -> Vec<Part> {
        let mut parts: Vec<Part> = Vec::new();
        for (place, key) in self.asked.keys.iter().enumerate() {
            if self.found[place].is_some() {
                continue;
            }
            let is_in = |part: &Part| part.range.as_ref().is_some_and(|range| range.contains(key));
            let at = parts.iter().position(is_in).unwrap_or_else(|| {
                let range = shard_of(key);
                let same = parts.iter().position(|part| part.range == range);
                same.unwrap_or_else(|| {
                    parts.push(self.part(range));
                    parts.len() - 1
                })
            });
            parts[at].places.push(place);
            parts[at].get.keys.push(key.clone());
        }
        parts
    }

    fn part(&self, range: Option<KeyRange>) -> Part {
        Part {
            get: BatchGet {
                keys: Vec::new(),
                read: self.asked.read,
            },
            places: Vec::new(),
            range,
        }
    }

    /// Takes the answer to one part.
    pub fn take(
        &mut self,
        part: &Part,
        found: Vec<Option<Versioned>>,
        answered: Vec<Answered>,
    ) -> Result<()> {
        if found.len() != part.places.len() {
            let (came, asked) = (found.len(), part.places.len());
            let reason = format!("{came} answers came to {asked} keys");
            return Err(Error::Internal(reason));
        }
        for (place, found) in part.places.iter().zip(found) {
            self.found[*place] = Some(found);
        }
        self.answered.extend(answered);
        Ok(())
    }

    /// Everything in the order asked. Every part must have been taken.
    pub fn end(self) -> (Vec<Option<Versioned>>, Vec<Answered>) {
        let found = self.found.into_iter();
        let found = found.map(|found| found.expect("every part was taken"));
        (found.collect(), self.answered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Timestamp;
    use crate::types::request::ReadKind;

    fn shard_of(key: &Key) -> Option<KeyRange> {
        let (below, shard) = KeyRange::ALL.split_at("a".into()).unwrap();
        let (left, right) = shard.split_at("m".into()).unwrap();
        match key[0] {
            b'?' => None,
            _ if below.contains(key) => Some(below),
            b'a'..b'm' => Some(left),
            _ => Some(right),
        }
    }

    fn gather(keys: &str) -> Gather {
        let keys = keys.split(' ');
        Gather::new(BatchGet {
            keys: keys
                .map(|key| Key::copy_from_slice(key.as_bytes()))
                .collect(),
            read: ReadKind::Linearizable,
        })
    }

    fn shown(parts: &[Part]) -> String {
        let keys = |part: &Part| {
            let keys = part.get.keys.iter();
            let keys: Vec<String> = keys.map(|key| key.escape_ascii().to_string()).collect();
            keys.join(" ")
        };
        parts.iter().map(keys).collect::<Vec<_>>().join(" | ")
    }

    /// Answers a part with its keys as values.
    fn answer(gather: &mut Gather, part: &Part) {
        let found = part.get.keys.iter().map(|key| {
            Some(Versioned {
                value: key.clone(),
                version: Timestamp(1),
            })
        });
        gather.take(part, found.collect(), Vec::new()).unwrap();
    }

    #[test]
    fn each_shard_is_asked_once_and_what_was_refused_is_parted_anew() {
        let mut gather = gather("z a ?1 n a b ?2");
        let parts = gather.parts(shard_of);
        assert_eq!(shown(&parts), "z n | a a b | ?1 ?2");
        answer(&mut gather, &parts[1]);
        assert_eq!(shown(&gather.parts(shard_of)), "z n | ?1 ?2");
        assert_eq!(shown(&gather.parts(|_| None)), "z ?1 n ?2");
        answer(&mut gather, &parts[0]);
        answer(&mut gather, &parts[2]);
        let (found, _) = gather.end();
        let values: Vec<_> = found
            .into_iter()
            .map(|found| found.unwrap().value)
            .collect();
        assert_eq!(values, ["z", "a", "?1", "n", "a", "b", "?2"]);
    }

    #[test]
    fn an_answer_of_another_length_is_refused() {
        let mut gather = gather("a b");
        let parts = gather.parts(shard_of);
        assert!(gather.take(&parts[0], vec![None], Vec::new()).is_err());
    }
}
