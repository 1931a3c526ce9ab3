//! Faults that are put into our own code, one at a time, to show that they are found. `tests/mutants` runs
//! them.
//!
//! A test that has never failed has not been tried, and of a simulation it is the faults in the program
//! that try it. Each fault stands in one line beside the rule that it breaks, `if mutant::lives(..)`. It is
//! switched on by name, in a build made for that alone; in every other build [`lives`] is a constant, and
//! nothing is left of it.
//!
//! # What has no mutant, and why
//!
//! - *A second lock.* Some rules guard what another one guards too, so that breaking one alone shows
//!   nothing. A proposal names its term, a new leader stamps only after its barrier, and apply refuses a
//!   stamp that is not above the last: the mutant breaks the last two together. A write names the bounds
//!   that it was stamped for, and apply looks whether the key is in the shard. The wait of apply for the
//!   local sync is such a lock, too: what was applied is committed, and a log that ends before it is cut
//!   behind it at the next start. So is the place in the checksum of a record in the log: every write ends
//!   with zeros, behind which nobody reads. That a snapshot is never older than what it replaces, and that
//!   an append leaves no gap, the library sees to before the machine and the log do. Tests in the small
//!   hold each by itself.
//! - *What costs time alone.* A vote before the vote that is always granted, a learner that is promoted
//!   before it has caught up, a log that is purged while a snapshot is on its way, the old leader's lease,
//!   a child that nobody stands for at once, a member that is not introduced, a leader that stays where
//!   there is no room: nothing wrong is ever answered. Tests of their own hold them.
//! - *What is the library's.* Counting votes and acknowledgements, taking over from a leader of an older
//!   term.
//! - *What only real threads do.* A group is reopened only when what its last core had begun has ended,
//!   and what is queued for the log is written. In a simulation nothing is ever half done.
//! - *What only the real world does.* That sled flushes, that its flush reaches the disk, that a file
//!   system loses what was not synced: `tests/power-cut-must-fail` takes those barriers out. That rot is
//!   found and a damaged engine is set aside: `tests/bit_rot.rs` and `tests/verify.rs` do the damage. How
//!   a cluster forms once and never twice: `tests/formation.rs`.
//! - *What is not understood.* An unknown format or kind of command is an error of the reader, and every
//!   reader has an old example beside it.
//! - *What is not there yet.* Leases, closed timestamps, tokens of sessions, reads of one cut over
//!   several shards, shards that sleep.

/// The faults: a name, and what is wrong then.
macro_rules! mutants {
    ($($name:ident: $breaks:literal,)*) => {
        /// A fault in our own code.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Mutant {
            $(#[doc = $breaks] $name,)*
        }

        #[cfg(quorate_mutants)]
        impl Mutant {
            /// All of them.
            pub const ALL: &[Mutant] = &[$(Mutant::$name,)*];

            /// What is wrong.
            pub fn breaks(self) -> &'static str {
                match self {
                    $(Mutant::$name => $breaks,)*
                }
            }
        }
    };
}

mutants! {
    LogNotSynced: "the log says that a write is synced, and has not synced it",
    FailedSyncRepeated: "a sync of the log that has failed is tried again, and then believed",
    TailNotRewritten: "a restarted log takes what it reads for durable, synced or not",
    LiveSegmentFreed: "a segment of the log is given up with entries in it that still count",
    CopiesNotRead: "what was copied forward in the log is not found at the next start",
    CopiesTruncate: "an entry that is copied forward in the log takes away those behind it",
    CorruptionCutOff: "damage of what the log has synced is taken for a torn write, and cut off",
    BornTwice: "a replica is born in the log under an id that was born or has ended there",
    LostLogBegunAnew: "a node that has lost its log begins a new one, and votes again",
    EndOfReplicaNotLogged: "a destroyed replica is not called gone in the log",
    GoneBeforeFlush: "a destroyed replica is called gone before its end is flushed",
    LogNotCut: "a log that ends below an installed snapshot is not cut there at the next start",
    HoleOverlooked: "a replica opens though its engine lacks what its log has given up",
    VoteNotStored: "a vote is given and not written down",
    VoteNotAwaited: "a vote is given before it is synced",
    SeedIsNoVote: "a seed does not count as a vote in its term",
    SeedVoteReplacesVotes: "each start puts the vote that a seed counts as in place of the real one",
    RefusedVoteCounted: "a vote that was refused counts as given",
    LeaderRestored: "a restarted leader leads on in its old term",
    BeatsWithoutCommit: "heartbeats do not say what is committed",
    LeaderNeverMissed: "a follower does not look whether its leader is silent",
    SplitNotKnownCommitted: "a child's birth does not prove the split in the parent's log",
    RowlessForgotten: "a child with a log and without a row does not wait for its parent at a start",
    UnbornForgotten: "a child with a row and without a birth is not looked for at a start",
    CheckpointWithoutFlush: "a checkpoint lets the log be purged without a flush",
    CheckpointReadLate: "a checkpoint takes for flushed what was applied during the flush",
    SnapshotNotFlushed: "an installed snapshot is not flushed before the log is purged behind it",
    RowBeforeData: "the row with the applied position is written before the data",
    AnsweredWhenProposed: "a write is answered when it is proposed, not when it is committed",
    UnknownCalledRefused: "a proposal that the next leader may commit is called refused",
    LeaderReadsAlone: "a leader reads without asking a quorum whether it still leads",
    AnyTermConfirms: "a voter that has seen a later leader lets the earlier one read",
    RoundServesLatecomers: "a round of reads that has begun serves readers who come later",
    FollowerReadsUnapplied: "a follower reads without having applied the position that it was told",
    ReadLooksOnce: "a reader does not look again whether the shard has changed under it",
    QuarantineForgotten: "a quarantined replica serves again after a restart",
    EndedReplicaReads: "a reader goes on reading in a replica that was destroyed",
    ReaderWaitsOneShort: "a reader waits for the entry before the one that it needs",
    StampsMayFall: "a new leader stamps by its own clock alone, and apply takes any stamp",
    CeilingNotKept: "a new leader may write below what an earlier one may have closed",
    StampBelowItsRequest: "a write may be stamped below the time of its request's id",
    RepeatNotKnown: "a repeated request is applied again",
    RefusalNotKnown: "a failed condition is not remembered, and a repeat is judged anew",
    SpanningNotKnown: "a refusal of a write over two shards is not remembered",
    WindowNotKept: "a repeat of a request that is forgotten is applied",
    RetryUnderNewId: "a client sends a write again under another id",
    ConditionsNotChecked: "conditions of writes always hold",
    OneOperationOfMany: "of a write with several keys one is written",
    LongValuesWhole: "a long value is stored in one record",
    HistoryNotKept: "a replaced version is not kept for those who read at an older stamp",
    DeletesLeaveNothing: "a delete removes the key instead of leaving a tombstone",
    RangeEndsEarly: "a delete of a range that was cut off by its limit says that it has done all",
    CollectedTooSoon: "collection removes versions that readers may still ask for",
    ScanEndsEarly: "a scan that was cut off by its limit says that it has seen all",
    ParentKeepsItsRange: "a split leaves the child's range to the parent too",
    ChildForgetsStamps: "a child starts with stamps below those of its parent",
    ChildForgetsOutcomes: "a child does not know the stored outcomes of its parent",
    SplitOfAnotherEpoch: "a split is applied though the shard has changed since it was planned",
    SplitWhileJoint: "a split is applied while the shard's voters are being changed",
    GoneSeededAgain: "a split that is replayed brings back a child that has ended",
    ChildSeededTwice: "a split that is replayed begins a child anew that has gone on",
    MergeOfAnotherEpoch: "a merge begins, or freezes a shard, though it has changed since that was planned",
    MergeWhileJoint: "a merge begins, or freezes a shard, while its voters are being changed",
    SplitWhileMerging: "a shard that is to be one with its neighbour is split",
    MembershipKeepsAttempt: "a change of membership does not end the merge that a shard is prepared for",
    FrozenWrites: "a shard goes on to write though its neighbour may absorb it",
    FrozenReads: "a shard goes on to be read though its neighbour may have absorbed it",
    OldAttemptFreezes: "an attempt to merge that is over freezes the right shard again",
    LateUnfreezeThaws: "the end of an earlier attempt to merge ends the freeze of a later one",
    AbsorbedAfterCancel: "a shard absorbs its neighbour though it has given that up",
    AbsorbedAlive: "a shard is absorbed while its replica on the node goes on",
    AbsorbedUnfrozen: "a shard is absorbed as far as a replica has come, not as it was frozen",
    MergedForgetsStamps: "a merged shard starts with stamps below those of its right half",
    MergedForgetsOutcomes: "a merged shard does not know the stored outcomes of its right half",
    MergedForgetsFloors: "a merged shard answers for versions that its right half has collected",
    MergedBoundsLow: "the bounds of a merged shard are not above those of its right half",
    RightOutlivesMerge: "a shard that was absorbed goes on to have its keys",
    AbsorbedCleared: "the keys of a shard that was absorbed are cleared",
    AbsorbedForgotten: "a shard forgets which ones it has absorbed",
    OrphanBeforeAbsorbed: "what was absorbed is destroyed on a node where it has yet to be absorbed",
    SnapshotLeavesRight: "a snapshot of a merged shard leaves the replica of its right half in its place",
    OlderSnapshotTaken: "a new replica is filled with a state from before the shard was as it was made for",
    CutOutgrown: "a scan goes on at its old stamp in keys that have come to the shard since",
    QuarantineNotMerged: "a replica that absorbs a quarantined one serves what that has got wrong",
    NoRoomAwaited: "a replica is made where another one still holds its keys",
    PinsIgnored: "versions are collected that a snapshot on its way still needs",
    FilledUnlisted: "a slot that is filled does not stand on the clear list",
    SlotGivenTwice: "a snapshot is filled into a slot that was used before",
    SlotClearedInUse: "a slot is cleared while it is filled",
    SnapshotRunsAhead: "a snapshot takes in what was written behind its position",
    SnapshotWithoutOutcomes: "a snapshot leaves out the stored outcomes",
    DestroyedOnDoubt: "a replica that hears no leader is destroyed without asking",
    StrangerByOldLeader: "a leader says who belongs to its group without asking a quorum",
    JointLeftAlone: "nobody finishes a change of voters that a leader has left half-way",
    LateReportBelieved: "placement takes an older report of a shard for the newest",
    ReserveIgnored: "a disk with less than the reserve has room enough",
    IdsGivenTwice: "placement gives the same ids out again",
    IncarnationReplaced: "placement takes a wiped node for the one whose id it uses",
    AnswersForAnother: "a node takes calls that are meant for another one, or an earlier one, at its address",
    MoveRemovesFirst: "a replica that moves goes before the other one is there",
    OperatorsDoubled: "a shard may have a second operator",
    OperatorsForEver: "an operator is never given up",
    StepOfAnotherEpoch: "a step is done that was planned for an earlier state of the shard",
    ZonesIgnored: "replicas are put into one zone while there is another",
    FewLeftRemoved: "a surplus replica is removed while too few of the others answer",
    SilenceBegunAnew: "whoever leads placement next counts silence from nothing",
    LateLeaderBelieved: "what a deposed leader reports counts",
    PausedPlans: "placement plans while it is paused",
    HotKeySplit: "a shard is split though one key has the load",
    MergeRightAfterSplit: "shards are merged that have been small and cold for a moment alone",
    MergeAcrossRules: "shards with different rules are merged",
    MergedDoubly: "a shard that is being absorbed may have an operator of its own",
    AbsorbedRecorded: "placement goes on to know a shard that was absorbed",
    WrongReplicaAnswers: "a replica takes messages for an earlier one of its group",
}

/// Whether this fault is in the program now: never.
#[cfg(not(quorate_mutants))]
#[inline(always)]
pub const fn lives(_mutant: Mutant) -> bool {
    false
}

/// Whether this fault is in the program now: at most one is, which the environment variable
/// `QUORATE_MUTANT` names.
///
/// # Panics
/// If it names none that there is: a run that was meant to find a fault must not pass without one.
#[cfg(quorate_mutants)]
pub fn lives(mutant: Mutant) -> bool {
    static LIVING: std::sync::OnceLock<Option<Mutant>> = std::sync::OnceLock::new();
    let living = LIVING.get_or_init(|| {
        let name = std::env::var("QUORATE_MUTANT").ok()?;
        let known = Mutant::ALL.iter().find(|it| format!("{it:?}") == name);
        Some(*known.unwrap_or_else(|| panic!("there is no mutant {name}")))
    });
    *living == Some(mutant)
}
