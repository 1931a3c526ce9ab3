//! Where replicas keep their keys. Decides only.
//!
//! A slot is a number that the engine's keys begin with. Numbers are never used twice. A slot being
//! filled, and one that is not needed any more, stands on the *clear list* in the engine, so that
//! neither a crash nor a given-up snapshot leaves keys behind. Clearing is done in portions; while a
//! slot is in use it waits. A *pin* holds back collection and clearing for a reader that takes its time.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
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
use crate::machine::MachineError;
use crate::mvcc::Floors;
use crate::shard::row::Piece;
use crate::types::KeyRange;
use crate::types::ReplicaId;

const CLEAR_FORMAT: u8 = 1;

/// Keys that one portion of clearing removes.
const CLEARED_AT_ONCE: usize = 2_000;

/// The slots of one node, shared by all its replicas.
pub struct Slots {
    engine: Arc<dyn Engine>,
    state: Mutex<State>,
    clearing: Mutex<()>,
}

#[derive(Default)]
struct State {
    next: u64,
    in_use: BTreeSet<Slot>,
    next_pin: u64,
    pins: BTreeMap<u64, (Vec<Piece>, Floors)>,
    /// Of each replica that was opened here, whether it was destroyed since.
    ended: BTreeMap<ReplicaId, Arc<AtomicBool>>,
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
    pub fn fresh(self: &Arc<Self>) -> Result<InUse, MachineError> {
        let mut state = self.lock();
        let slot = Slot(state.next);
        let mut batch = Batch::default();
        batch.put(layout::next_slot(), (slot.0 + 1).to_be_bytes().to_vec());
        put_on_clear_list(&mut batch, &whole(slot));
        self.engine.write(batch)?;
        state.next += 1;
        state.in_use.insert(slot);
        drop(state);
        Ok(InUse {
            slots: self.clone(),
            slot: vec![slot],
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

    /// Counts slots as in use until the guard is dropped: nothing in them is cleared.
    pub(crate) fn hold(self: &Arc<Self>, pieces: &[Piece]) -> InUse {
        let slot: Vec<Slot> = pieces.iter().map(|piece| piece.slot).collect();
        self.lock().in_use.extend(slot.iter().copied());
        InUse {
            slots: self.clone(),
            slot,
        }
    }

    /// Holds back collection above `floors`, and clearing, in these pieces.
    pub fn pin(self: &Arc<Self>, pieces: Vec<Piece>, floors: Floors) -> Pin {
        let mut state = self.lock();
        let id = state.next_pin;
        state.next_pin += 1;
        state.pins.insert(id, (pieces, floors));
        drop(state);
        Pin {
            slots: self.clone(),
            id,
        }
    }

    /// The lowest floors that pins ask for in a piece; `None` without a pin there.
    pub fn held(&self, piece: &Piece) -> Option<Floors> {
        let state = self.lock();
        let overlapping = state
            .pins
            .values()
            .filter(|(pieces, _)| pieces.iter().any(|held| held.overlaps(piece)));
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
            let in_use = self.lock().in_use.contains(&piece.slot);
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
                let (_, entry) = pair?;
                Ok(value::decode(
                    "an entry of the clear list",
                    CLEAR_FORMAT,
                    &entry,
                )?)
            })
            .collect()
    }

    fn clear_portion(&self, piece: &Piece) -> Result<(), MachineError> {
        let mut batch = Batch::default();
        for family in Family::CLEARED {
            let (start, end) = layout::family(piece.slot, family, &piece.range);
            let room = CLEARED_AT_ONCE - batch.changes.len();
            for pair in self.engine.scan(&start, &end, false).take(room) {
                batch.delete(pair?.0);
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
    let entry = value::encode(CLEAR_FORMAT, piece);
    (layout::clear(piece.slot, &piece.range), entry)
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

/// Slots that must not be cleared. Dropping it ends that.
pub struct InUse {
    slots: Arc<Slots>,
    slot: Vec<Slot>,
}

impl InUse {
    /// The first of the slots.
    pub fn slot(&self) -> Slot {
        self.slot[0]
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut state = self.slots.lock();
        for slot in &self.slot {
            state.in_use.remove(slot);
        }
    }
}

/// Holds back collection and clearing. Dropping it ends that.
pub struct Pin {
    slots: Arc<Slots>,
    id: u64,
}

impl Pin {
    /// Asks for less: nothing below these floors is needed.
    pub(crate) fn raise(&self, floors: Floors) {
        if let Some((_, held)) = self.slots.lock().pins.get_mut(&self.id) {
            *held = floors;
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.slots.lock().pins.remove(&self.id);
    }
}
