//! What the Raft library is known to have got wrong.
//!
//! Each test is named after a fault of openraft that was public, fixed since or not, and sets up what led to
//! it: real replicas with our log, our state machine and our network's side, between wires that the test
//! cuts, and beside replicas that the test plays. Most run in virtual time under a seed, and are the same
//! each time. What must hold is said of us: with another version of the library, or with another setting of
//! ours, it must hold as well.

#![allow(clippy::unwrap_used)]
#![allow(unreachable_pub)]

#[path = "library/puppets.rs"]
mod puppets;
#[path = "library/stage.rs"]
mod stage;
mod support;
#[path = "library/wires.rs"]
mod wires;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use puppets::Manner;
use puppets::Puppet;
use quorate::env::files::DiskFiles;
use quorate::env::files::Files;
use quorate::env::rng::Seeded;
use quorate::error::Error;
use quorate::error::Result;
use quorate::raft::Leadership;
use quorate::testkit::disk::CrashDisk;
use quorate::types::NodeId;
use quorate::types::ReplicaId;
use quorate::types::Timestamp;
use quorate::types::log::Vote;
use quorate::types::node::Identity;
use quorate::types::request::Write;
use quorate::wire::channel::GrpcChannel;
use quorate::wire::identity::IdentityCell;
use quorate::wire::request::Channel;
use quorate::wire::request::Route;
use quorate::wire::request::VoteRequest;
use stage::BIRTH;
use stage::Ground;
use stage::PATIENCE;
use stage::Seat;
use stage::Stage;
use stage::empty_snapshot;
use stage::eventually;
use stage::from_the_future;
use stage::of_node;
use stage::panics_here;
use stage::panics_of;
use stage::version_in;
use stage::versions_in;
use stage::virtually;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio::time::sleep;
use tokio::time::timeout;
use wires::Wires;

/// Longer than another leader takes to be elected and to answer a write.
const ROUNDS: Duration = Duration::from_secs(2);
/// Long enough for all that is under way to arrive, and shorter than between two heartbeats.
const SETTLED: Duration = Duration::from_millis(20);

/// A leader and those whose acknowledgements the test gives.
struct Counting {
    leader: Seat,
    puppets: Vec<Puppet>,
    stamps: stage::Stamps,
    waiting: Vec<BoxFuture<'static, Result<Bytes>>>,
    last: u64,
}

impl Counting {
    /// One leader of so many voters, whose first entry everybody has.
    async fn of(voters: u64, wires: &Arc<Wires>) -> Counting {
        let nodes: Vec<u64> = (1..=voters).collect();
        let put = |node: &u64| Puppet::put(wires, *node, Manner::Grants);
        let puppets: Vec<Puppet> = nodes[1..].iter().map(put).collect();
        let leader = Seat::open(1, &nodes, &Ground::memory(), wires).await;
        let first = BIRTH.index + 1;
        puppets.iter().for_each(|puppet| puppet.take(first));
        eventually("a leader", async || leads(&leader)).await;
        let mut counting = Counting {
            leader,
            puppets,
            stamps: stage::Stamps::default(),
            waiting: Vec::new(),
            last: first,
        };
        counting.settle().await;
        counting
    }

    /// Proposes writes, each an entry of its own.
    async fn propose(&mut self, count: u64) {
        for _ in 0..count {
            let term = self.leader.leads().unwrap();
            let write = self.stamps.write("key", self.last, 0);
            let entry = self.stamps.entry(&[write], Default::default());
            let answer = self.leader.group.propose(term, entry).await.unwrap();
            self.waiting.push(answer);
            self.last += 1;
            self.sent().await;
        }
    }

    /// Waits until everybody was sent everything, so that what comes next is sent by itself.
    async fn sent(&self) {
        let last = self.last;
        eventually("entries sent to all", async || {
            let sent: Vec<u64> = self.puppets.iter().map(Puppet::sent).collect();
            let all = sent.iter().all(|sent| *sent == last);
            all.then_some(()).ok_or(format!("{sent:?} of {last}"))
        })
        .await;
    }

    /// What a majority has: the leader has everything.
    fn held_by_majority(&self) -> u64 {
        let mut held: Vec<u64> = self.puppets.iter().map(Puppet::has).collect();
        held.push(self.last);
        held.sort_unstable();
        held[(held.len() - 1) / 2]
    }

    /// Lets everything arrive. What is applied then is what a majority has, and nobody was told of more.
    async fn settle(&mut self) {
        sleep(SETTLED).await;
        let held = self.held_by_majority();
        let of: Vec<u64> = self.puppets.iter().map(Puppet::has).collect();
        assert_eq!(self.leader.applied(), held, "of {} and {of:?}", self.last);
        for puppet in &self.puppets {
            assert!(
                puppet.committed() <= held,
                "{} of {of:?}",
                puppet.committed()
            );
        }
    }
}

fn leads(seat: &Seat) -> std::result::Result<u64, String> {
    let view = || format!("{:?}", seat.group.view());
    seat.leads().ok_or_else(view)
}

/// openraft #1802: where a voter that was already ahead of the commit moved further ahead, the order in which
/// acknowledgements are counted broke, and an entry was committed that no majority had. An entry must be
/// committed when a majority has it, and not before.
#[test]
fn an_entry_is_committed_when_a_majority_has_it_and_not_before() {
    virtually(1802, async {
        let wires = Arc::default();
        let mut counting = Counting::of(7, &wires).await;
        counting.propose(12).await;
        // The order of the report, with one more voter on top, which is the leader.
        for (puppet, has) in [(0, 5), (1, 3), (2, 4), (2, 10), (3, 6)] {
            counting.puppets[puppet].take(2 + has);
            counting.settle().await;
        }
        let mut chance = Seeded::new(1802);
        for _ in 0..150 {
            if chance.below(3) == 0 {
                counting.propose(1 + chance.below(2)).await;
            }
            let puppet = chance.below(counting.puppets.len() as u64) as usize;
            let puppet = &counting.puppets[puppet];
            puppet.take((puppet.has() + 1 + chance.below(6)).min(counting.last));
            counting.settle().await;
        }
        assert!(counting.leader.applied() > 50, "too little was committed");
        counting.leader.check();
        wires.clear();
    });
    assert_eq!(panics_here(), [""; 0]);
}

/// openraft #1220: a voter that had seen a candidate's vote and had not given it, since its own log was longer,
/// answered with that vote as its newest, and the candidate took this for a yes. A candidate must count what
/// was granted.
#[test]
fn a_candidate_whose_vote_was_only_seen_does_not_lead() {
    virtually(1220, async {
        let wires = Arc::default();
        let puppets = [2, 3].map(|node| Puppet::put(&wires, node, Manner::OnlySees));
        let seat = Seat::open(1, &[1, 2, 3], &Ground::memory(), &wires).await;
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            assert_eq!(seat.leads(), None, "elected by nobody");
            sleep(Duration::from_millis(1)).await;
        }
        let asked = puppets.each_ref().map(Puppet::votes_asked);
        assert!(asked.iter().all(|asked| *asked > 3), "{asked:?} asked");
        // And it is led by who is elected.
        for puppet in &puppets {
            puppet.behave(Manner::Grants);
            puppet.take(u64::MAX);
        }
        eventually("a leader", async || leads(&seat)).await;
        wires.clear();
    });
    assert_eq!(panics_here(), [""; 0]);
}

/// The other side of openraft #1220: whoever has acknowledged more than a candidate has must not vote for it,
/// however often and in whichever way it is asked, also when the candidate's vote is the newest that it knows.
#[test]
fn nobody_votes_for_a_log_that_lacks_what_was_acknowledged() {
    virtually(12_200, async {
        let mut stage = Stage::of(3).await;
        stage.make_lead(1).await;
        stage.put(&[1], "early", 1, 0).await;
        stage.agree(&[1, 2, 3]).await;
        stage.wires.cut_off(&[3], &[1, 2]);
        let stale = stage.seat(3).group.machine_applied().position;
        for number in 2..22 {
            stage.put(&[1], "late", number, 0).await;
        }
        let voter = &stage.seat(2).group;
        let term = voter.view().term;
        for (further, repeats) in [(1, 3), (5, 2)] {
            for repeat in 0..repeats {
                for leadership_transfer in [false, true] {
                    let request = VoteRequest {
                        vote: Vote {
                            term: term + further,
                            replica: ReplicaId(3),
                            committed: false,
                        },
                        last: stale,
                        leadership_transfer,
                        pre_vote: false,
                    };
                    let answer = voter.vote(request).await.unwrap();
                    assert!(!answer.granted, "{request:?}, repeat {repeat}: {answer:?}");
                }
            }
        }
        // The one who lacks it stands, again and again, and the only other one is who has it.
        stage.wires.heal();
        stage.wires.cut_off(&[1], &[2, 3]);
        for _ in 0..20 {
            stage.seat(3).group.elect().await.unwrap();
            sleep(Duration::from_millis(37)).await;
            assert_eq!(
                stage.seat(3).leads(),
                None,
                "it leads without what was answered"
            );
        }
        stage.put(&[2, 3], "later", 22, 0).await;
        stage.wires.heal();
        stage.agree(&[1, 2, 3]).await;
    });
    assert_eq!(panics_here(), [""; 0]);
}

/// openraft #2080: five voters, of which three reach each other; the leader reaches only one of these, and one
/// more reaches nobody. Its heartbeats to that one kept the three from electing another leader for ever. Those
/// who can commit must come to a leader, and the old one must answer nothing meanwhile.
#[test]
fn a_leader_without_a_majority_does_not_hold_up_one_that_could_have_it() {
    virtually(2080, async {
        let mut stage = Stage::of(5).await;
        stage.make_lead(1).await;
        stage.put(&[1], "before", 1, 0).await;
        stage.agree(&[1, 2, 3, 4, 5]).await;
        let (bridge, a, b) = (2, 3, 4);
        let links = [(1, bridge), (bridge, a), (bridge, b), (a, b)];
        stage.wires.connect_only(&[1, 2, 3, 4, 5], &links);
        let cut = Instant::now();
        let write = stage.stamps.write("lost or not", 2, 0);
        let pending = stage.propose(1, &write).await.unwrap();
        stage.put(&[bridge, a, b], "meanwhile", 3, 0).await;
        println!("a majority goes on {:?} after the cut", cut.elapsed());
        stage.wires.heal();
        let answer = timeout(PATIENCE, pending).await;
        let answer = answer.expect("what was proposed is answered after healing");
        assert!(
            answer.is_ok() || matches!(answer, Err(Error::Unknown { .. })),
            "it may have happened: {answer:?}"
        );
        stage.agree(&[1, 2, 3, 4, 5]).await;
    });
    assert_eq!(panics_here(), [""; 0]);
}

/// openraft #1808: a leader that was cut off with a change of members in its log that nobody else had, and was
/// then sent a snapshot that replaced its log, went on with the members of that change, of which it could be a
/// majority alone. Who is in the group must be what the snapshot says, at once and after a restart.
#[test]
fn a_snapshot_replaces_members_that_were_never_committed() {
    virtually(1808, async {
        let mut stage = Stage::of_these(&[1, 2, 3], 4).await;
        stage.make_lead(1).await;
        stage.put(&[1], "before", 1, 0).await;
        stage.agree(&[1, 2, 3]).await;
        stage.wires.cut_off(&[1], &[2, 3, 4]);
        // Entries first, so that the change lies behind the one that the others make.
        for number in 0..8 {
            let write = stage.stamps.write("never", number, 0);
            drop(stage.propose(1, &write).await.unwrap());
        }
        let lone = stage.seat(1).group.clone();
        let seen = lone.seen().unwrap();
        let alone = BTreeSet::from([ReplicaId(1)]);
        let changed = tokio::spawn({
            let lone = lone.clone();
            async move { lone.set_voters(&seen, alone).await }
        });
        eventually("the change in its log", async || {
            lone.is_joint().then_some(()).ok_or("not joint".to_owned())
        })
        .await;
        let stale = lone.view().last_index;

        let leader = stage.leader_of(&[2, 3]).await;
        eventually("a further member", async || {
            let leader = &stage.seat(leader).group;
            let seen = leader.seen().map_err(|error| error.to_string())?;
            let added = leader.add_learner(&seen, of_node(4)).await;
            added.map_err(|error| error.to_string())
        })
        .await;
        while stage.seat(leader).group.view().last_index < stale + 10 {
            stage.put(&[2, 3], "after", stale, 0).await;
        }
        stage.agree(&[2, 3, 4]).await;
        stage.purge(&[2, 3]).await;
        stage.wires.heal();
        stage.agree(&[1, 2, 3, 4]).await;
        assert_eq!(stage.seat(1).installed(), 1, "it was to get a snapshot");
        let outcome = timeout(PATIENCE, changed).await.expect("the change ends");
        assert!(
            outcome.unwrap().is_err(),
            "a change that no majority has made"
        );

        let members = stage.seat(2).group.membership();
        assert_eq!(members.voters, [BTreeSet::from([1, 2, 3].map(ReplicaId))]);
        assert_eq!(stage.seat(1).group.membership(), members);
        stage.reopen(1).await;
        eventually("the members after a restart", async || {
            let found = stage.seat(1).group.membership();
            (found == members).then_some(()).ok_or(format!("{found:?}"))
        })
        .await;
        // Alone it is no majority.
        stage.wires.cut_off(&[1], &[2, 3, 4]);
        for _ in 0..20 {
            stage.seat(1).group.elect().await.unwrap();
            sleep(Duration::from_millis(100)).await;
            assert_eq!(stage.seat(1).leads(), None, "it leads alone");
        }
        stage.wires.heal();
        stage.make_lead(1).await;
        stage.put(&[1], "as leader", 3, 0).await;
        stage.agree(&[1, 2, 3, 4]).await;
    });
    assert_eq!(panics_here(), [""; 0]);
}

/// openraft #1747: a leader that was told to hand over to a replica which never took over refused all writes
/// for hours, while the reads that it answered kept the others from electing another; by its lease it could even
/// answer them stale. While somebody reads through it all the time, writes must go on soon, and no read may
/// miss what was answered before it began.
#[test]
fn a_handover_that_nobody_takes_ends_and_no_read_around_it_is_stale() {
    for (seed, ways) in [(17_470, 2), (17_471, 1)] {
        virtually(seed, async {
            let mut stage = Stage::of(3).await;
            stage.make_lead(1).await;
            stage.put(&[1], "key", 1, 0).await;
            stage.agree(&[1, 2, 3]).await;
            // It does not hear that it is to lead; or it does, and nobody hears from it.
            stage.wires.cut_ways_before_a_handover(&[2], &[1, 3]);
            if ways == 2 {
                stage.wires.cut_ways_before_a_handover(&[1, 3], &[2]);
            }
            let answered = Arc::new(AtomicU64::new(1));
            let reads = Arc::new(AtomicU64::new(0));
            let readers: Vec<_> = [1, 3]
                .map(|node| {
                    let (seat, answered, reads) = (
                        stage.seat(node).reach(),
                        Arc::clone(&answered),
                        Arc::clone(&reads),
                    );
                    tokio::spawn(async move {
                        loop {
                            let known = answered.load(Ordering::SeqCst);
                            let read = timeout(Duration::from_secs(1), seat.read("key")).await;
                            if let Ok(Ok(found)) = read {
                                let found = found.expect("the key is never deleted");
                                assert!(found >= known, "{found} was read, {known} was answered");
                                reads.fetch_add(1, Ordering::SeqCst);
                            }
                            sleep(Duration::from_millis(10)).await;
                        }
                    })
                })
                .into();
            let asked = stage.seat(1).group.transfer_leader(Some(NodeId(2))).await;
            asked.unwrap();
            let began = Instant::now();
            for number in 2..50 {
                stage.put(&[1, 3], "key", number, 0).await;
                answered.store(number, Ordering::SeqCst);
                if number == 2 {
                    println!("writes go on {:?} after the handover", began.elapsed());
                }
            }
            stage.wires.heal();
            stage.agree(&[1, 2, 3]).await;
            for reader in readers {
                assert!(!reader.is_finished(), "{:?}", reader.await);
                reader.abort();
            }
            let reads = reads.load(Ordering::SeqCst);
            assert!(reads > 50, "{reads} reads are too few to mean something");
        });
    }
    assert_eq!(panics_here(), [""; 0]);
}

/// A leader that was replaced while answers to it were on their way: the library takes an answer for one to the
/// last request whose end it acknowledges, and so an answer that left before the read began for one to an empty
/// append that was sent after it. The round that a read waits for must be of its own.
#[test]
fn an_answer_that_left_before_a_read_does_not_confirm_it() {
    virtually(4_500, async {
        let mut stage = Stage::of(3).await;
        stage.make_lead(1).await;
        stage.put(&[1], "key", 1, 0).await;
        stage.agree(&[1, 2, 3]).await;
        // The leader hears everything much later than it is sent.
        stage.wires.slow_ways(&[2, 3], &[1], 2 * ROUNDS);
        // When the first is acknowledged, the leader says so to all; that has the end of the last.
        for number in 0..20 {
            let write = stage.stamps.write("under way", number, 0);
            drop(stage.propose(1, &write).await.unwrap());
            sleep(Duration::from_millis(2)).await;
        }
        // And then nobody hears it.
        stage.wires.slow_ways(&[1], &[2, 3], FROZEN);
        let cut = Instant::now();
        stage.put(&[2, 3], "key", 2, 0).await;
        println!("the others go on {:?} after the cut", cut.elapsed());
        let mut reads = Vec::new();
        while cut.elapsed() < 3 * ROUNDS {
            let former = stage.seat(1).reach();
            assert!(former.group.view().role == "leader" || cut.elapsed() > 2 * ROUNDS);
            reads.push(tokio::spawn(async move { former.read("key").await }));
            sleep(Duration::from_millis(5)).await;
        }
        for read in reads {
            let read = read.await.unwrap();
            let is_stale = matches!(read, Ok(found) if found != Some(2));
            assert!(!is_stale, "{read:?} was read");
        }
        // What is on its way for so long is given up.
        stage.wires.cut_off(&[1], &[2, 3]);
        sleep(SETTLED).await;
        stage.wires.heal();
        stage.agree(&[1, 2, 3]).await;
    });
    assert_eq!(panics_here(), [""; 0]);
}

/// The round itself: acknowledgements of appends, of which there are plenty all the time, count for nothing in it.
/// Only what a majority says when it is asked does.
#[test]
fn a_read_is_confirmed_by_what_a_majority_says() {
    virtually(6_400, async {
        let wires = Arc::default();
        let counting = Counting::of(5, &wires).await;
        let term = counting.leader.leads().unwrap();
        let check = async |said: [Option<u64>; 4], expected: &str| {
            let puppets = counting.puppets.iter().zip(said);
            puppets.for_each(|(puppet, term)| puppet.say(term));
            let found = match counting.leader.group.read_position().await {
                Ok(position) => format!("from {}", position.index),
                Err(Error::NotLeader { .. }) => "does not lead".to_owned(),
                Err(error) => error.to_string(),
            };
            assert!(found.contains(expected), "{said:?}: {found}");
        };
        let (same, earlier, later) = (Some(term), Some(term - 1), Some(term + 1));
        let whole = format!("from {}", counting.last);
        check([None, None, None, None], "no quorum").await;
        check([same, None, None, None], "no quorum").await;
        check([same, None, same, None], &whole).await;
        check([None, earlier, Some(0), None], &whole).await;
        check([None, None, None, later], "does not lead").await;
        check([same, later, same, same], "does not lead").await;
        wires.clear();
    });
    assert_eq!(panics_here(), [""; 0]);
}

/// Followers may commit, apply and show an entry that the leader's own disk is too slow for. What has been seen
/// there must be seen at the leader, and through it, from then on.
#[test]
fn what_a_follower_has_shown_is_not_hidden_again_at_the_leader() {
    virtually(9_239, async {
        let (wires, nodes) = (Arc::default(), [1, 2, 3]);
        let disk = Arc::new(CrashDisk::new());
        let slow = Ground {
            files: Arc::clone(&disk) as Arc<dyn Files>,
            ..Ground::memory()
        };
        let leader = Seat::open(1, &nodes, &slow, &wires).await;
        let follower = Seat::open(2, &nodes, &Ground::memory(), &wires).await;
        let _third = Seat::open(3, &nodes, &Ground::memory(), &wires).await;
        let term = eventually("a leader", async || {
            leader
                .group
                .elect()
                .await
                .map_err(|error| error.to_string())?;
            sleep(SETTLED).await;
            leads(&leader)
        })
        .await;
        let first = eventually("a first position", async || {
            let position = leader.group.read_position().await;
            position.map_err(|error| error.to_string())
        })
        .await;
        for seat in [&leader, &follower] {
            seat.group.wait_applied(first).await.unwrap();
        }
        disk.set_busy_ms(5_000);
        let stamps = stage::Stamps::default();
        let entry = stamps.entry(&[stamps.write("key", 1, 0)], Default::default());
        let answer = leader.group.propose(term, entry).await.unwrap();
        let shown = eventually("the entry at a follower", async || {
            let applied = follower.applied();
            let is_new = applied > first.index;
            is_new.then_some(applied).ok_or("not yet".to_owned())
        })
        .await;
        assert!(leader.applied() < shown, "its disk is too quick");
        let position = leader.group.read_position().await.unwrap();
        assert!(
            position.index >= shown,
            "{position} is read, {shown} was shown"
        );
        answer.await.unwrap();
        wires.clear();
    });
    assert_eq!(panics_here(), [""; 0]);
}

/// A leader that leaves its group leads on until its successor does. The library asserts that such a leader changes
/// no members (`append_membership`, in 0.10.0-alpha.37); it must be told of none.
#[test]
fn a_leader_that_has_left_changes_no_members() {
    virtually(4_000, async {
        let mut stage = Stage::of_these(&[1, 2, 3], 4).await;
        stage.make_lead(1).await;
        stage.put(&[1], "key", 1, 0).await;
        let leader = stage.seat(1).group.clone();
        let seen = leader.seen().unwrap();
        let others = BTreeSet::from([2, 3].map(ReplicaId));
        leader.set_voters(&seen, others).await.unwrap();
        assert_eq!(leader.view().role, "leader", "it has handed over already");
        assert!(matches!(leader.seen(), Err(Error::NotLeader { .. })));
        let late = leader.add_learner(&seen, of_node(4)).await;
        assert!(late.is_err(), "by what it saw before it left");
        stage.put(&[2, 3], "key", 2, 0).await;
        stage.agree(&[2, 3]).await;
    });
    assert_eq!(panics_here(), [""; 0]);
}

/// openraft #1706: while a follower took a snapshot, the leader gave up the entries behind it, so that the
/// follower needed the next snapshot as soon as it had this one, and under steady writes never caught up. One
/// snapshot must be enough.
#[test]
fn a_follower_needs_one_snapshot_however_long_it_takes() {
    virtually(1706, async {
        let mut stage = Stage::of(3).await;
        stage.make_lead(1).await;
        stage.put(&[1], "before", 1, 0).await;
        stage.agree(&[1, 2, 3]).await;
        stage.wires.cut_off(&[3], &[1, 2]);
        for number in 0..40 {
            let key = format!("long/{number:02}");
            stage.put(&[1, 2], &key, number, 60_000).await;
        }
        stage.purge(&[1, 2]).await;
        stage.wires.slow_snapshots(Duration::from_millis(400));
        stage.wires.heal();
        let (mut number, began) = (0, Instant::now());
        let mut longest = 0;
        while stage.seat(3).installed() == 0 || began.elapsed() < Duration::from_secs(10) {
            assert!(began.elapsed() < PATIENCE, "no snapshot was installed");
            stage.put(&[1, 2], "meanwhile", number, 0).await;
            sleep(SETTLED).await;
            number += 1;
            for node in [1, 2] {
                stage.seat(node).reach().checkpoint().await;
            }
            let view = stage.seat(1).group.view();
            longest = longest.max(view.last_index - view.purged_index);
        }
        stage.agree(&[1, 2, 3]).await;
        println!("{number} writes beside the snapshot, up to {longest} entries kept for it");
        assert!(
            number > 100,
            "{number} writes are too few to mean something"
        );
        assert_eq!(stage.wires.snapshots_to(NodeId(3)), 1);
        assert_eq!(stage.seat(3).installed(), 1);
    });
    assert_eq!(panics_here(), [""; 0]);
}

/// openraft #1761, in one group: a leader with a write that nobody has answered yet was cut off and replaced,
/// and was then sent a snapshot that steps over the place of that write. When it applied the next entry, its core
/// panicked, and the replica stood still for good. The write must be answered, as unknown, and the replica
/// must go on. What delay does to many groups of real processes is in `tests/faults.rs`.
#[test]
fn a_former_leader_with_unanswered_writes_goes_on_behind_a_snapshot() {
    virtually(1761, async {
        let mut stage = Stage::of(3).await;
        stage.make_lead(1).await;
        stage.put(&[1], "before", 1, 0).await;
        stage.agree(&[1, 2, 3]).await;
        stage.wires.cut_off(&[1], &[2, 3]);
        let mut pending = Vec::new();
        for number in 0..5 {
            let write = stage.stamps.write("nobody has it", number, 0);
            pending.push(stage.propose(1, &write).await.unwrap());
        }
        let stale = stage.seat(1).group.view().last_index;
        while stage.seat(2).applied() < stale + 10 {
            stage.put(&[2, 3], "meanwhile", 2, 0).await;
        }
        stage.purge(&[2, 3]).await;
        stage.wires.heal();
        stage.agree(&[1, 2, 3]).await;
        assert_eq!(stage.seat(1).installed(), 1, "it was to get a snapshot");
        for number in 0..5 {
            stage.put(&[1, 2, 3], "behind", number, 0).await;
        }
        stage.agree(&[1, 2, 3]).await;
        for pending in pending {
            let answer = timeout(PATIENCE, pending).await;
            let answer = answer.expect("a write that was proposed is answered");
            assert!(matches!(answer, Err(Error::Unknown { .. })), "{answer:?}");
        }
        assert_eq!(stage.seat(1).read("nobody has it"), None);
    });
    assert_eq!(panics_here(), [""; 0]);
}

/// Who answers nothing for so long has stopped for good.
const FROZEN: Duration = Duration::from_secs(120);
/// Entries that are under way at once.
const WINDOW: usize = 512;
/// Writes in one entry, as a busy shard gathers them.
const GATHERED: usize = 8;

/// Writes as fast as they are taken.
#[derive(Default)]
struct Flood {
    /// What each entry's writes were answered; the place is in their keys.
    answered: Vec<Option<Vec<Timestamp>>>,
    repeats: u64,
}

type Asked<'a> = BoxFuture<'a, (usize, Vec<Write>, Result<Bytes>)>;

impl Flood {
    fn key(place: usize, of_entry: usize) -> String {
        format!("flood/{place:06}/{of_entry}")
    }

    /// So many further entries, each repeated under the ids of its writes until it is answered.
    async fn run(&mut self, stage: &Stage, count: usize) {
        let first = self.answered.len();
        self.answered.resize(first + count, None);
        let mut again: Vec<(usize, Vec<Write>)> = Vec::new();
        let mut fresh = first..first + count;
        let mut asked: FuturesUnordered<Asked<'_>> = FuturesUnordered::new();
        let mut leader = stage.leader_of(&stage.nodes()).await;
        loop {
            while asked.len() < WINDOW {
                let next = again.pop().or_else(|| {
                    let place = fresh.next()?;
                    let write = |of_entry| {
                        let key = Flood::key(place, of_entry);
                        stage.stamps.write(&key, place as u64, 0)
                    };
                    Some((place, (0..GATHERED).map(write).collect()))
                });
                let Some((place, writes)) = next else { break };
                match stage.propose_all(leader, &writes).await {
                    Ok(answer) => {
                        asked.push(Box::pin(async move { (place, writes, answer.await) }));
                    }
                    Err(_) => {
                        again.push((place, writes));
                        break;
                    }
                }
            }
            match timeout(FROZEN, asked.next()).await {
                Ok(Some((place, _, Ok(answer)))) => self.answer(place, versions_in(&answer)),
                Ok(Some((place, writes, Err(_)))) => again.push((place, writes)),
                Ok(None) if again.is_empty() && fresh.is_empty() => return,
                Ok(None) => {}
                Err(_) => panic!(
                    "{} entries have no answer: {:?}",
                    asked.len(),
                    stage.views()
                ),
            }
            if !again.is_empty() {
                self.repeats += 1;
                sleep(Duration::from_millis(1)).await;
                leader = stage.leader_of(&stage.nodes()).await;
            }
        }
    }

    fn answer(&mut self, place: usize, versions: Vec<Timestamp>) {
        let known = self.answered[place].replace(versions);
        assert_eq!(known, None, "entry {place} is answered once");
    }

    /// Each write is there as it was answered, and no two were one.
    fn check(&self, seat: &Seat) {
        seat.check();
        let mut all = BTreeSet::new();
        for (place, versions) in self.answered.iter().enumerate() {
            let versions = versions.as_ref().expect("every write is answered");
            for (of_entry, version) in versions.iter().enumerate() {
                let key = Flood::key(place, of_entry);
                assert_eq!(seat.version(&key), Some(*version), "{key} on {}", seat.node);
                assert!(all.insert(*version), "{key} has another one's version");
            }
        }
        assert_eq!(all.len(), self.answered.len() * GATHERED);
    }
}

/// openraft #2116: under sixteen thousand writes a second the purge of a log overtook entries that waited to be
/// applied, and the core panicked, on two of three nodes within minutes; the processes lived and the group was
/// lost. Under as many writes as the machine takes (the test says how many), with each log purged at every
/// moment behind all that is applied and a follower that falls behind it, the group must go on. And whatever
/// ends a core, the group must be opened again on its store: nothing answered is lost, nothing is applied twice.
#[test]
fn purges_under_many_writes_and_cores_that_fail_lose_nothing() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("purged")
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(purges_and_failures());
}

/// Entries of the parts.
const STEADY: usize = 4_000;
const LAGGING: usize = 500;
const BETWEEN_FAILURES: usize = 300;

async fn purges_and_failures() {
    // Real files, and no disk that others keep busy.
    let directory = tempfile::TempDir::new_in("/dev/shm").unwrap();
    let mut ground = Ground::memory();
    ground.files = Arc::new(DiskFiles);
    ground.directory = directory.path().to_owned();
    ground.segment_bytes = 1 << 20;
    let mut stage = Stage::on(&[1, 2, 3], 3, ground).await;
    let purging: Vec<_> = stage.seats.iter().map(|seat| purge(seat.reach())).collect();
    let purging: Vec<_> = purging.into_iter().map(tokio::spawn).collect();
    let mut flood = Flood::default();
    purges_keep_up(&stage, &mut flood).await;
    a_follower_falls_behind(&stage, &mut flood).await;
    stage.seats.iter().for_each(|seat| flood.check(seat));
    let by_itself = panics_of("purged").len();
    println!("the library failed by itself {by_itself} times");
    cores_fail(&stage, &mut flood, by_itself).await;
    // The others do without it.
    stage.put(&[2, 3], "after all", 1, 0).await;
    stage.agree(&[2, 3]).await;
    for node in [2, 3] {
        flood.check(stage.seat(node));
    }
    purging.iter().for_each(tokio::task::JoinHandle::abort);
}

async fn purges_keep_up(stage: &Stage, flood: &mut Flood) {
    let began = Instant::now();
    flood.run(stage, STEADY).await;
    let seconds = began.elapsed().as_secs_f64();
    let purged = stage.views().into_iter().map(|(_, view)| view.purged_index);
    let purged: Vec<u64> = purged.collect();
    println!(
        "{:.0} writes/s in {:.0} entries/s of three replicas, purged to {purged:?}",
        (STEADY * GATHERED) as f64 / seconds,
        STEADY as f64 / seconds,
    );
    let half = STEADY as u64 / 2;
    // A leader that has sent a snapshot keeps what comes behind it for a while.
    assert!(purged.iter().any(|purged| *purged > half), "{purged:?}");
}

async fn a_follower_falls_behind(stage: &Stage, flood: &mut Flood) {
    let leader = stage.leader_of(&[1, 2, 3]).await;
    let follower = 1 + leader % 3;
    let others = [1, 2, 3].map(|node| (node != follower).then_some(node));
    let others: Vec<u64> = others.into_iter().flatten().collect();
    stage.wires.cut_off(&[follower], &others);
    flood.run(stage, LAGGING).await;
    stage.wires.heal();
    flood.run(stage, LAGGING).await;
    stage.agree(&[1, 2, 3]).await;
    // Unless a leader that had sent one before has kept what it lacks.
    let installed: u64 = stage.seats.iter().map(Seat::installed).sum();
    println!("{installed} snapshots were installed");
}

/// One replica's core fails under writes, until it is left alone.
async fn cores_fail(stage: &Stage, flood: &mut Flood, by_itself: usize) {
    let chunks = empty_snapshot();
    let mut reopened = 0;
    loop {
        stage.make_lead(1).await;
        let failing = async {
            sleep(Duration::from_millis(30)).await;
            stage.seat(1).fail_core(&chunks).await
        };
        let (goes_on, ()) = tokio::join!(failing, flood.run(stage, BETWEEN_FAILURES));
        if !goes_on {
            break;
        }
        reopened += 1;
        // Its state is the others', which are held to every answer in the end.
        stage.agree(&[1, 2, 3]).await;
    }
    stage.seat(1).check();
    println!(
        "reopened {reopened} times under writes and then left alone; {} times entries were sent again",
        flood.repeats
    );
    assert!((3 - by_itself.min(3)..=3).contains(&reopened), "{reopened}");
    assert_eq!(stage.seat(1).group.view().role, "failed");
}

async fn purge(replica: stage::Reach) {
    loop {
        replica.checkpoint().await;
        sleep(Duration::from_millis(1)).await;
    }
}

/// A group is opened again three times in ten minutes and then left alone; what failed long ago does not count.
#[test]
fn the_fourth_failure_within_ten_minutes_is_the_last() {
    virtually(4, async {
        let wires = Arc::default();
        let seat = Seat::open(1, &[1], &Ground::memory(), &wires).await;
        let (stamps, chunks) = (stage::Stamps::default(), empty_snapshot());
        let mut answered = BTreeMap::new();
        for round in 0..2 {
            for failure in 0..3 {
                let term = eventually("a leader", async || leads(&seat)).await;
                let key = format!("{round}/{failure}");
                let write = stamps.write(&key, failure, 0);
                let entry = stamps.entry(&[write], Default::default());
                let answer = seat.group.propose(term, entry).await.unwrap();
                answered.insert(key, version_in(&answer.await.unwrap()));
                assert!(seat.fail_core(&chunks).await, "failure {failure}");
                // No term twice.
                assert!(eventually("a leader", async || leads(&seat)).await > term);
            }
            if round == 0 {
                sleep(Duration::from_secs(601)).await;
            }
        }
        for (key, version) in answered {
            assert_eq!(seat.version(&key), Some(version), "{key}");
        }
        assert!(!seat.fail_core(&chunks).await, "it was opened once more");
        assert_eq!(*seat.group.leadership().borrow(), Leadership::Failed);
        seat.group.read_position().await.unwrap_err();
        seat.check();
        wires.clear();
    });
}

/// The same with real nodes: one is sent what no core survives, four times. Three times its replica goes on; then
/// its `/readyz` fails and says which group it is, and the cluster serves without it.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_group_has_failed_too_often_is_not_ready_and_is_not_missed() {
    if support::skipped("faults") {
        return;
    }
    let mut rig = support::Rig::start(support::SMALL_LOG).await;
    let load = support::write(&rig.nodes, "failing/", 1);
    support::answered(&load, 50, "before the failures").await;
    let chunks = empty_snapshot();
    let leader = rig.leader().await;
    let address = rig.processes.http_address(leader);
    for failure in 0..4 {
        let statuses = rig.ready(&[0, 1, 2]).await;
        eventually("a node that is ready", async || {
            let answer = ask(&address, "/readyz").await;
            (answer.0 == 200).then_some(()).ok_or(format!("{answer:?}"))
        })
        .await;
        let (victim, other) = (&statuses[leader], &statuses[(leader + 1) % 3]);
        assert_eq!(support::number(victim), leader);
        let channel = GrpcChannel::of_node(IdentityCell::of(Identity {
            cluster: other.cluster,
            node: other.member.id,
            incarnation: other.member.incarnation,
        }));
        channel.learn(victim.member.clone());
        let replica = support::shard(victim);
        let route = Route {
            group: replica.group,
            from: support::shard(other).replica,
            to: replica.replica,
        };
        let header = from_the_future(route, replica.term, replica.last_index);
        let chunks: Vec<_> = chunks.iter().cloned().map(Ok).collect();
        let sent = channel.node(victim.member.id);
        let sent = sent.snapshot(header, futures::stream::iter(chunks).boxed());
        sent.await.expect_err("no core takes this");
        support::answered(&load, 50, &format!("after failure {}", failure + 1)).await;
    }
    let group = support::shard(&rig.ready(&[(leader + 1) % 3]).await[0]).group;
    let failed = eventually("a node that is not ready", async || {
        match ask(&address, "/readyz").await {
            (503, said) => Ok(said),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert!(
        failed.contains(&format!("{group} failed: failed")),
        "{failed}"
    );
    assert_eq!(ask(&address, "/livez").await.0, 200);
    // It asks the others for what it cannot answer.
    let through = vec![Arc::clone(&rig.nodes[leader])];
    support::newest(&through, "failing/").await;
    support::stop_and_verify(load, "failing/", &rig.nodes).await;
    // Whoever starts the node again has it back.
    rig.processes.kill(leader).unwrap();
    rig.processes.start(leader).unwrap();
    rig.ready(&[0, 1, 2]).await;
}

async fn ask(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split_whitespace().nth(1).unwrap();
    (status.parse().unwrap(), body.to_owned())
}
