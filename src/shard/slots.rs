//! Where replicas keep their keys. Decides only.
//!
//! A slot is a number that the engine's keys begin with. Numbers are never used twice. A shard that was
//! split off shares the slot of the one that it was split from, so what belongs to a replica is a
//! *piece*: a slot and a range of keys in it, never another's too. A slot being filled, and a piece that
//! is not needed any more, stand on the *clear list* in the engine, so that neither a crash nor a
//! given-up snapshot leaves keys behind. Clearing is done in portions; what is in use waits, and only
//! that. A *pin* holds back collection and clearing for a reader that takes its time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::TryLockError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use crate::codec::layout;
use crate::codec::layout::Family;
use crate::codec::layout::Slot;
use crate::codec::ordered;
use crate::codec::value;
use crate::engine::Batch;
use crate::engine::Engine;
use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::machine::MachineError;
use crate::mvcc::Floors;
use crate::shard::row::Piece;
use crate::types::KeyRange;
use crate::types::ReplicaId;

const CLEAR_FORMAT: u8 = 1;

/// Keys that one portion of clearing removes: their batch holds the engine's lock.
const CLEARED_AT_ONCE: usize = 256;
/// Bytes of them after which a portion ends: the engine reads what it removes.
const CLEARED_BYTES: usize = 256 * 1024;

/// The slots of one node, shared by all its replicas.
pub struct Slots {
    engine: Arc<dyn Engine>,
    state: Mutex<State>,
    clearing: Mutex<()>,
}

#[derive(Default)]
struct State {
    next: u64,
    /// The next guard, of either kind.
    next_guard: u64,
    in_use: BTreeMap<u64, Vec<Piece>>,
    pins: BTreeMap<u64, (Vec<Piece>, Floors)>,
    /// Of each replica that was opened here, whether it was destroyed since.
    ended: BTreeMap<ReplicaId, Arc<AtomicBool>>,
}

impl State {
    fn guard(&mut self) -> u64 {
        self.next_guard += 1;
        self.next_guard
    }

    fn is_in_use(&self, piece: &Piece) -> bool {
        self.in_use.values().any(|held| overlap(held, piece))
    }
}

fn overlap(held: &[Piece], piece: &Piece) -> bool {
    held.iter().any(|held| held.overlaps(piece))
}

impl Slots {
    /// Reads which slots were given out. What stands on the clear list is cleared from now on.
    pub fn open(engine: Arc<dyn Engine>) -> Result<Arc<Slots>, MachineError> {
        let next = match engine.get(&layout::next_slot())? {
            Some(bytes) => ordered::take_u64(&bytes)?.0,
            None => 1,
        };
        Ok(Arc::new(Slots {
            engine,
            state: Mutex::new(State {
                next,
                ..State::default()
            }),
            clearing: Mutex::new(()),
        }))
    }

    /// A slot never used before. It stands on the clear list until a batch takes it off, and counts as
    /// in use until the guard is dropped.
    pub fn fresh(self: &Arc<Self>) -> Result<Fresh, MachineError> {
        let mut state = self.lock();
        let slot = Slot(state.next);
        let mut batch = Batch::default();
        if !mutant::lives(Mutant::SlotGivenTwice) {
            batch.put(layout::next_slot(), (slot.0 + 1).to_be_bytes().to_vec());
        }
        if !mutant::lives(Mutant::FilledUnlisted) {
            put_on_clear_list(&mut batch, &whole(slot));
        }
        self.engine.write(batch)?;
        state.next += 1;
        let guard = state.guard();
        state.in_use.insert(guard, vec![whole(slot)]);
        drop(state);
        let in_use = InUse {
            slots: self.clone(),
            guard,
        };
        Ok(Fresh {
            slot,
            _in_use: in_use,
        })
    }

    /// Whether the replica was destroyed, now and later.
    pub(crate) fn ended(&self, replica: ReplicaId) -> Arc<AtomicBool> {
        self.lock().ended.entry(replica).or_default().clone()
    }

    /// Tells the replica's readers that what they read may be missing.
    pub(crate) fn end(&self, replica: ReplicaId) {
        self.ended(replica).store(true, Ordering::SeqCst);
    }

    /// Counts pieces as in use until the guard is dropped: nothing in them is cleared.
    pub(crate) fn hold(self: &Arc<Self>, pieces: &[Piece]) -> InUse {
        let mut state = self.lock();
        let guard = state.guard();
        state.in_use.insert(guard, pieces.to_vec());
        drop(state);
        InUse {
            slots: self.clone(),
            guard,
        }
    }

    /// Holds back collection above `floors`, and clearing, in these pieces.
    pub fn pin(self: &Arc<Self>, pieces: Vec<Piece>, floors: Floors) -> Pin {
        let mut state = self.lock();
        let guard = state.guard();
        state.pins.insert(guard, (pieces, floors));
        drop(state);
        Pin {
            slots: self.clone(),
            guard,
        }
    }

    /// The lowest floors that pins ask for in a piece; `None` without a pin there.
    pub fn held(&self, piece: &Piece) -> Option<Floors> {
        let state = self.lock();
        let overlapping = state
            .pins
            .values()
            .filter(|(pieces, _)| pieces.iter().any(|held| held.overlaps(piece)))
            .filter(|_| !mutant::lives(Mutant::PinsIgnored));
        overlapping.map(|(_, floors)| *floors).reduce(Floors::min)
    }

    /// Removes a portion of what stands on the clear list and is neither in use nor pinned; true when
    /// there may be more. Does nothing while another caller is at it.
    pub fn clear(&self) -> Result<bool, MachineError> {
        let _alone = match self.clearing.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Poisoned(_)) => panic!("no holder of the lock panics"),
        };
        for piece in self.clear_list()? {
            let in_use = self.lock().is_in_use(&piece) && !mutant::lives(Mutant::SlotClearedInUse);
            // A snapshot may have been installed there since the list was read: its batch takes the slot
            // off the list before the slot counts as unused.
            let listed = layout::clear(piece.slot, &piece.range);
            if !in_use && self.held(&piece).is_none() && self.engine.get(&listed)?.is_some() {
                return self.clear_portion(&piece).map(|()| true);
            }
        }
        Ok(false)
    }

    /// What is to be cleared.
    pub fn clear_list(&self) -> Result<Vec<Piece>, MachineError> {
        let (start, end) = layout::clear_list();
        let entries = self.engine.scan(&start, &end, false);
        entries
            .map(|pair| {
                let (place, entry) = pair?;
                value::decode::<()>("an entry of the clear list", CLEAR_FORMAT, &entry)?;
                let (slot, range) = layout::cleared(&place)?;
                Ok(Piece { range, slot })
            })
            .collect()
    }

    fn clear_portion(&self, piece: &Piece) -> Result<(), MachineError> {
        let mut batch = Batch::default();
        let mut bytes = 0;
        'portion: for family in Family::CLEARED {
            let (start, end) = layout::family(piece.slot, family, &piece.range);
            for pair in self.engine.scan(&start, &end, false) {
                let (place, record) = pair?;
                bytes += record.len();
                batch.delete(place);
                if batch.changes.len() >= CLEARED_AT_ONCE || bytes >= CLEARED_BYTES {
                    break 'portion;
                }
            }
        }
        if batch.changes.is_empty() {
            take_off_clear_list(&mut batch, piece);
        }
        Ok(self.engine.write(batch)?)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the lock panics")
    }
}

/// All of a slot.
pub(crate) fn whole(slot: Slot) -> Piece {
    Piece {
        range: KeyRange::ALL,
        slot,
    }
}

/// What stands on the clear list for a piece: key and value.
pub(crate) fn clear_entry(piece: &Piece) -> (Vec<u8>, Vec<u8>) {
    let place = layout::clear(piece.slot, &piece.range);
    (place, value::encode(CLEAR_FORMAT, &()))
}

/// Puts a piece on the clear list, with the batch.
pub(crate) fn put_on_clear_list(batch: &mut Batch, piece: &Piece) {
    let (place, entry) = clear_entry(piece);
    batch.put(place, entry);
}

/// Takes a piece off the clear list, with the batch.
pub(crate) fn take_off_clear_list(batch: &mut Batch, piece: &Piece) {
    batch.delete(layout::clear(piece.slot, &piece.range));
}

/// A slot that is being filled. Dropping it gives up what no row has taken by then.
pub struct Fresh {
    slot: Slot,
    _in_use: InUse,
}

impl Fresh {
    /// The slot.
    pub fn slot(&self) -> Slot {
        self.slot
    }
}

/// Pieces that must not be cleared. Dropping it ends that.
pub(crate) struct InUse {
    slots: Arc<Slots>,
    guard: u64,
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.slots.lock().in_use.remove(&self.guard);
    }
}

/// Holds back collection and clearing. Dropping it ends that.
pub struct Pin {
    slots: Arc<Slots>,
    guard: u64,
}

impl Pin {
    /// Asks for less: nothing below these floors is needed.
    pub(crate) fn raise(&self, floors: Floors) {
        if let Some((_, held)) = self.slots.lock().pins.get_mut(&self.guard) {
            *held = floors;
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.slots.lock().pins.remove(&self.guard);
    }
}
