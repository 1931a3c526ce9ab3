//! Tasks that somebody watches. A spawned task whose handle nobody keeps can die unseen; here each has
//! a name, its end by error or panic ends the set, and the set is stopped in order.
//!
//! Everything that is spawned goes through [`spawn`], so that a simulation, which has many nodes on one
//! thread, can end one of them anywhere: a task belongs to the [`Life`] of the task that spawned it.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::panic::resume_unwind;
use std::time::Duration;

use futures::FutureExt as _;
use rustix::time::ClockId;
use rustix::time::clock_gettime;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinHandle;
use tokio::task::yield_now;
use tokio::time::Instant;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::env::life::Life;
use crate::env::rng;
use crate::env::rng::Chance;

/// In a simulation others get so many turns, at most, before and after offloaded work.
const SIMULATED_TURNS: u64 = 3;
/// Work that can wait rests so many times as long as it had to wait, but not longer than this.
const RESTS: u32 = 3;
const REST_MAX: Duration = Duration::from_millis(100);

/// Spawns a task. It belongs to the life of the task that spawns it, if that has one.
pub fn spawn<F>(work: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    spawn_on(&Handle::current(), work)
}

/// As [`spawn`], on another runtime.
pub fn spawn_on<F>(runtime: &Handle, work: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    match Life::current() {
        Some(life) => runtime.spawn(life.live(work)),
        None => runtime.spawn(work),
    }
}

/// What a task ends with.
pub type TaskResult = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// A task that ended by an error or a panic.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("task {task} {how}: {reason}")]
pub struct TaskFailure {
    /// Its name.
    pub task: String,
    /// By what it ended.
    pub how: Ending,
    /// What it said.
    pub reason: String,
}

/// How a task failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It returned an error.
    Failed,
    /// It panicked.
    Panicked,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ending::Failed => "failed",
            Ending::Panicked => "panicked",
        })
    }
}

/// Named tasks that live and end together. Dropping the set aborts what still runs.
#[derive(Debug)]
pub struct TaskSet {
    tasks: Vec<Task>,
    failures: mpsc::Receiver<TaskFailure>,
    // Full: a failure is already waiting to be seen, and only the first one counts.
    report: mpsc::Sender<TaskFailure>,
}

#[derive(Debug)]
struct Task {
    name: String,
    stop: CancellationToken,
    handle: JoinHandle<()>,
}

impl Default for TaskSet {
    fn default() -> TaskSet {
        let (report, failures) = mpsc::channel(1);
        TaskSet {
            tasks: Vec::new(),
            failures,
            report,
        }
    }
}

impl TaskSet {
    /// A set without tasks.
    pub fn new() -> TaskSet {
        TaskSet::default()
    }

    /// A set that is stopped on its own, and whose failures are seen by whoever watches this one.
    pub fn branch(&self) -> TaskSet {
        let (_, failures) = mpsc::channel(1);
        TaskSet {
            tasks: Vec::new(),
            failures,
            report: self.report.clone(),
        }
    }

    /// Starts a task. It is given a token, and ends soon after that is cancelled; a task that waits for
    /// nothing else can be written without it, and is then aborted.
    pub fn spawn<F>(&mut self, name: impl Into<String>, task: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = TaskResult> + Send + 'static,
    {
        let name = name.into();
        let stop = CancellationToken::new();
        let work = std::panic::AssertUnwindSafe(task(stop.clone())).catch_unwind();
        let report = self.report.clone();
        let named = name.clone();
        let handle = spawn(async move {
            let (how, reason) = match work.await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => (Ending::Failed, error.to_string()),
                Err(panic) => (Ending::Panicked, panic_message(&*panic)),
            };
            let task = named;
            let _ = report.try_send(TaskFailure { task, how, reason });
        });
        self.tasks.retain(|task| !task.handle.is_finished());
        self.tasks.push(Task { name, stop, handle });
    }

    /// Returns the first failure; waits for ever while there is none, and in a branch. Cancel-safe.
    pub async fn failed(&mut self) -> TaskFailure {
        match self.failures.recv().await {
            Some(failure) => failure,
            None => std::future::pending().await,
        }
    }

    /// Runs until `until` has come or a task has failed, then stops all tasks, last started first.
    /// Each gets `grace` to end by itself.
    pub async fn run_until(
        mut self,
        until: impl Future<Output = ()>,
        grace: Duration,
    ) -> Result<(), TaskFailure> {
        let failure = tokio::select! {
            biased;
            failure = self.failed() => Some(failure),
            () = until => None,
        };
        let stopped = self.stop(grace).await;
        failure.map_or(stopped, Err)
    }

    /// Stops all tasks, last started first, one after the other: each is asked to, gets `grace`, and
    /// is aborted after that. Says the first failure that nobody has taken yet.
    pub async fn stop(mut self, grace: Duration) -> Result<(), TaskFailure> {
        while let Some(mut task) = self.tasks.pop() {
            task.stop.cancel();
            if tokio::time::timeout(grace, &mut task.handle).await.is_err() {
                tracing::warn!(task = task.name, "did not stop in time and was aborted");
                task.handle.abort();
                let _ = (&mut task.handle).await;
            }
        }
        self.failures.try_recv().map_or(Ok(()), Err)
    }
}

impl Drop for TaskSet {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.handle.abort();
        }
    }
}

/// Runs something that blocks (engine, files) away from the threads that run tasks, and waits for it.
/// A panic in it goes on here. Dropping the call does not stop the work.
///
/// In a simulation the work is done at once, on the one thread, some turns later.
pub async fn offload<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    if rng::is_seeded() {
        let_others_go_first().await;
        let done = work();
        let_others_go_first().await;
        return done;
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // The runtime is going down and has not begun the work: nobody is left to be answered.
            Err(_) => std::future::pending().await,
        },
    }
}

/// As [`offload`], for work that can wait: afterwards it rests three times as long as it had to wait, for a lock, the
/// disk or the processor. So it rests little on a node with nothing else to do, and leaves a busy one to its clients; a
/// rest is short enough that the work comes to an end there too. In a simulation work takes no time.
pub async fn background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    if rng::is_seeded() {
        return offload(work).await;
    }
    let began = Instant::now();
    let (done, worked) = offload(move || {
        let before = processor_time();
        let done = work();
        (done, processor_time().saturating_sub(before))
    })
    .await;
    let rest = rest_after(began.elapsed().saturating_sub(worked));
    if !rest.is_zero() {
        sleep(rest).await;
    }
    done
}

fn rest_after(waited: Duration) -> Duration {
    (waited * RESTS).min(REST_MAX)
}

/// That this thread has had.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

async fn let_others_go_first() {
    for _ in 0..Chance.below(SIMULATED_TURNS) {
        yield_now().await;
    }
}

/// Gives a value to a task from a thread that may block: waits while the queue is full.
///
/// # Panics
/// In a simulation, when the queue is full: there nobody could empty it.
pub fn give_blocking<T>(queue: &mpsc::Sender<T>, value: T) {
    match queue.try_send(value) {
        // Nobody takes any more: the node is stopping.
        Ok(()) | Err(TrySendError::Closed(_)) => {}
        Err(TrySendError::Full(value)) => drop(queue.blocking_send(value)),
    }
}

/// What a panic said.
pub fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::Mutex;

    use super::*;

    const GRACE: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn the_first_failure_stops_the_set_last_started_first() {
        let stopped = Arc::new(Mutex::new(Vec::new()));
        let mut set = TaskSet::new();
        for name in ["a", "b"] {
            let stopped = stopped.clone();
            set.spawn(name, |stop| async move {
                stop.cancelled().await;
                stopped.lock().unwrap().push(name);
                Ok(())
            });
        }
        set.spawn("c", |_| async { Err("out of luck".into()) });
        let failure = set
            .run_until(std::future::pending(), GRACE)
            .await
            .unwrap_err();
        assert_eq!(failure.to_string(), "task c failed: out of luck");
        assert_eq!(*stopped.lock().unwrap(), ["b", "a"]);
    }

    #[tokio::test]
    async fn a_failure_in_a_branch_is_seen_in_the_set_it_branched_from() {
        let mut set = TaskSet::new();
        let mut branch = set.branch().branch();
        branch.spawn("twig", |_| async { Err("snapped".into()) });
        assert_eq!(set.failed().await.to_string(), "task twig failed: snapped");
        assert_eq!(branch.stop(GRACE).await, Ok(()));
    }

    #[tokio::test]
    async fn a_panic_is_a_failure() {
        let mut set = TaskSet::new();
        set.spawn("p", |_| async { panic!("at {}", 7) });
        assert_eq!(set.failed().await.to_string(), "task p panicked: at 7");
    }

    #[tokio::test]
    async fn a_task_that_does_not_listen_is_aborted() {
        let mut set = TaskSet::new();
        set.spawn("deaf", |_| std::future::pending());
        let grace = Duration::from_millis(1);
        assert_eq!(set.run_until(async {}, grace).await, Ok(()));
    }

    #[tokio::test]
    #[should_panic(expected = "in the work")]
    async fn a_panic_in_offloaded_work_goes_on_with_its_caller() {
        assert_eq!(offload(|| 7).await, 7);
        offload(|| panic!("in the work")).await
    }

    #[tokio::test]
    async fn work_that_can_wait_rests_after_it_had_to_wait() {
        const WAIT: Duration = Duration::from_millis(30);
        let (_nobody_sends, held) = std::sync::mpsc::channel::<()>();
        let began = Instant::now();
        assert!(background(move || held.recv_timeout(WAIT)).await.is_err());
        // While it waited it hardly had the processor.
        assert!(began.elapsed() >= WAIT + rest_after(WAIT) / 2);
        assert_eq!(rest_after(Duration::ZERO), Duration::ZERO);
        assert_eq!(rest_after(Duration::from_secs(60)), REST_MAX);
    }
}
