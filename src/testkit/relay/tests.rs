//! Each rule, seen on real sockets. The test's own process is node 0, which opens connections to
//! node 1, a listener; what another process opens is another node's.

use std::process::Command;
use std::process::Stdio;

use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;
use tokio::time::timeout;

use super::*;

const THERE: Way = Way { from: 0, to: 1 };
const BACK: Way = Way { from: 1, to: 0 };

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(30);
/// So long nothing arrives that does not arrive.
const SILENCE: Duration = Duration::from_millis(60);

struct Net {
    relay: Relay,
    door: SocketAddr,
    listener: TcpListener,
}

/// Both ends of one connection.
struct Ends {
    opener: TcpStream,
    target: TcpStream,
}

impl Net {
    async fn new() -> Net {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut relay = Relay::new(1);
        // Nobody connects to node 0.
        relay.add(listener.local_addr().unwrap()).unwrap();
        let door = relay.add(listener.local_addr().unwrap()).unwrap();
        relay.set_process(0, std::process::id());
        Net {
            relay,
            door,
            listener,
        }
    }

    async fn open(&self) -> TcpStream {
        TcpStream::connect(self.door).await.unwrap()
    }

    async fn accept(&self) -> TcpStream {
        let accepted = timeout(LIMIT, self.listener.accept()).await;
        accepted.expect("somebody connects").unwrap().0
    }

    async fn ends(&self) -> Ends {
        let (opener, target) = (self.open().await, self.accept().await);
        Ends { opener, target }
    }
}

async fn say(stream: &mut TcpStream, words: &str) {
    stream.write_all(words.as_bytes()).await.unwrap();
}

async fn hears(stream: &mut TcpStream, words: &str) {
    let mut heard = vec![0; words.len()];
    let read = timeout(LIMIT, stream.read_exact(&mut heard)).await;
    read.expect("something arrives").unwrap();
    assert_eq!(String::from_utf8_lossy(&heard), words);
}

async fn hears_nothing(stream: &mut TcpStream) {
    let read = timeout(SILENCE, stream.read_u8()).await;
    assert!(read.is_err(), "heard {read:?}");
}

/// The connection broke: it did not end as one that its peer has closed.
async fn breaks(stream: &mut TcpStream) {
    let read = timeout(LIMIT, stream.read(&mut [0; 16])).await;
    let error = read.expect("it breaks").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

async fn ends(stream: &mut TcpStream) {
    let read = timeout(LIMIT, stream.read(&mut [0; 16])).await;
    assert_eq!(read.expect("it ends").unwrap(), 0);
}

#[tokio::test]
async fn an_open_way_carries_everything_both_ways_and_the_end_of_each() {
    let net = Net::new().await;
    let Ends {
        mut opener,
        mut target,
    } = net.ends().await;
    let long = "long".repeat(100_000);
    let (said, heard) = (say(&mut opener, &long), hears(&mut target, &long));
    tokio::join!(said, heard);
    opener.shutdown().await.unwrap();
    ends(&mut target).await;
    say(&mut target, "still here").await;
    hears(&mut opener, "still here").await;
    drop(target);
    ends(&mut opener).await;
}

#[tokio::test]
async fn a_cut_way_swallows_one_direction_and_the_connection_breaks_when_it_is_healed() {
    let net = Net::new().await;
    let Ends {
        mut opener,
        mut target,
    } = net.ends().await;
    say(&mut opener, "before").await;
    hears(&mut target, "before").await;
    net.relay.set(&[THERE], Rule::CUT);
    say(&mut opener, "lost").await;
    hears_nothing(&mut target).await;
    say(&mut target, "back").await;
    hears(&mut opener, "back").await;
    net.relay.heal();
    breaks(&mut opener).await;
    breaks(&mut target).await;
    let Ends {
        mut opener,
        mut target,
    } = net.ends().await;
    say(&mut opener, "anew").await;
    hears(&mut target, "anew").await;
}

#[tokio::test]
async fn a_connection_that_missed_nothing_outlives_a_cut() {
    let net = Net::new().await;
    let Ends {
        mut opener,
        mut target,
    } = net.ends().await;
    net.relay.set(&Way::between(&[0], &[1]), Rule::CUT);
    hears_nothing(&mut target).await;
    net.relay.heal();
    say(&mut opener, "as if nothing had been").await;
    hears(&mut target, "as if nothing had been").await;
}

#[tokio::test]
async fn an_end_is_not_seen_through_a_cut() {
    let net = Net::new().await;
    let Ends { opener, mut target } = net.ends().await;
    net.relay.set(&[THERE], Rule::CUT);
    drop(opener);
    hears_nothing(&mut target).await;
    // Nobody is left to answer, and that is not seen either.
    say(&mut target, "anybody?").await;
    say(&mut target, "anybody?").await;
    hears_nothing(&mut target).await;
    net.relay.heal();
    breaks(&mut target).await;
}

#[tokio::test]
async fn a_new_connection_through_a_cut_is_taken_and_swallowed() {
    let net = Net::new().await;
    net.relay.set(&[THERE], Rule::CUT);
    let mut opener = net.open().await;
    say(&mut opener, "lost").await;
    hears_nothing(&mut opener).await;
    assert!(timeout(SILENCE, net.listener.accept()).await.is_err());
    net.relay.heal();
    breaks(&mut opener).await;
    net.ends().await;
}

#[tokio::test]
async fn a_stalled_way_gives_everything_when_it_is_opened() {
    let net = Net::new().await;
    let Ends {
        mut opener,
        mut target,
    } = net.ends().await;
    net.relay.set(&[BACK], Rule::STALLED);
    say(&mut target, "old ").await;
    hears_nothing(&mut opener).await;
    net.relay.set(&[THERE], Rule::STALLED);
    let mut late = net.open().await;
    say(&mut late, "late").await;
    assert!(timeout(SILENCE, net.listener.accept()).await.is_err());
    net.relay.heal();
    say(&mut target, "new").await;
    hears(&mut opener, "old new").await;
    hears(&mut net.accept().await, "late").await;
}

#[tokio::test]
async fn a_receiver_that_does_not_read_holds_the_sender_back() {
    let net = Net::new().await;
    let Ends {
        mut opener,
        target: _target,
    } = net.ends().await;
    let block = vec![0; 1 << 20];
    let mut taken = 0;
    // Ends: the relay and the sockets' own buffers hold a bounded number of bytes.
    while let Ok(written) = timeout(LIMIT / 30, opener.write(&block)).await {
        taken += written.unwrap();
    }
    assert!(taken < 64 << 20, "{taken} bytes were taken");
}

#[tokio::test]
async fn a_delay_is_felt_in_its_direction_only() {
    let delay = Duration::from_millis(80);
    let net = Net::new().await;
    let Ends {
        mut opener,
        mut target,
    } = net.ends().await;
    net.relay.set(&[THERE], Rule::late(delay, delay / 4));
    let began = Instant::now();
    say(&mut opener, "late").await;
    hears(&mut target, "late").await;
    assert!(began.elapsed() >= delay);
    net.relay.set(&[THERE], Rule::late(LIMIT, Duration::ZERO));
    say(&mut target, "at once").await;
    hears(&mut opener, "at once").await;
}

#[tokio::test]
async fn what_is_lost_arrives_after_it_was_sent_again_and_in_order() {
    let net = Net::new().await;
    let Ends {
        mut opener,
        mut target,
    } = net.ends().await;
    net.relay.set(&[THERE], Rule::lossy(60));
    let began = Instant::now();
    for word in ["one ", "two ", "three ", "four ", "five "] {
        say(&mut opener, word).await;
        // So that each word is a segment of its own.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    hears(&mut target, "one two three four five ").await;
    assert!(began.elapsed() >= Duration::from_millis(200));
}

#[tokio::test]
async fn a_rate_is_kept() {
    let net = Net::new().await;
    let Ends {
        mut opener,
        mut target,
    } = net.ends().await;
    let rule = Rule {
        bytes_per_second: Some(100_000),
        ..Rule::default()
    };
    net.relay.set(&[THERE], rule);
    let words = "x".repeat(20_000);
    let began = Instant::now();
    tokio::join!(say(&mut opener, &words), hears(&mut target, &words));
    assert!(began.elapsed() >= Duration::from_millis(190));
}

#[tokio::test]
async fn a_bit_flips_in_what_is_marked_until_the_way_is_healed() {
    let net = Net::new().await;
    let Ends {
        mut opener,
        mut target,
    } = net.ends().await;
    net.relay.spoil(BACK, Bytes::from_static(b"value"));
    say(&mut opener, "a value").await;
    hears(&mut target, "a value").await;
    assert_eq!(net.relay.spoilt(), 0);
    say(&mut target, "a value, another value").await;
    hears(&mut opener, "a valud, another value").await;
    assert_eq!(net.relay.spoilt(), 1);
    net.relay.heal();
    say(&mut target, "a value").await;
    hears(&mut opener, "a value").await;
}

#[tokio::test]
async fn a_node_that_does_not_listen_breaks_the_connection() {
    let net = Net::new().await;
    let Net {
        relay: _relay,
        door,
        listener,
    } = net;
    drop(listener);
    let mut opener = TcpStream::connect(door).await.unwrap();
    breaks(&mut opener).await;
}

/// A process that connects to the door and says `hello` once its input ends.
fn other_process(door: SocketAddr) -> std::process::Child {
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{}; read; echo hello >&3",
        door.port()
    );
    let mut bash = Command::new("bash");
    let bash = bash.args(["-c", &script]).stdin(Stdio::piped());
    bash.spawn().unwrap()
}

#[tokio::test]
async fn a_connection_belongs_to_the_process_that_opened_it() {
    let mut net = Net::new().await;
    let address = net.listener.local_addr().unwrap();
    net.relay.add(address).unwrap();
    net.relay.set(&[THERE], Rule::CUT);
    let mut other = other_process(net.door);
    // Named late, as a node is that connects at once when it is started.
    net.relay.set_process(2, other.id());
    let mut target = net.accept().await;
    drop(other.stdin.take());
    hears(&mut target, "hello\n").await;
    other.wait().unwrap();
}

#[tokio::test]
async fn a_connection_that_nobody_of_ours_opened_is_broken() {
    let net = Net::new().await;
    net.relay.set_process(0, u32::MAX);
    let mut opener = net.open().await;
    breaks(&mut opener).await;
}
