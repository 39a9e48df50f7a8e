//! Threads that run one function together.

use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread::{park, yield_now, JoinHandle};
use std::time::{Duration, Instant};

use super::pace::Pace;

/// Looks at a flag before the thread gives its core away: more costs milliseconds where cores are busy.
const SPINS: usize = 400;
/// Offers of the core before a thread without work goes to sleep.
const YIELDS: usize = 200;

/// One atomic in a cache line of its own.
#[repr(align(128))]
struct Apart<T>(T);

/// Lets nobody pass before all have come.
pub struct Barrier {
    /// How many it is for: changes between jobs.
    threads: AtomicUsize,
    arrived: Apart<AtomicUsize>,
    round: Apart<AtomicUsize>,
    /// Nanoseconds that threads have waited after they gave their core away.
    lost: AtomicU64,
}

impl Barrier {
    fn new() -> Barrier {
        let number = || Apart(AtomicUsize::new(0));
        Barrier { threads: AtomicUsize::new(1), arrived: number(), round: number(), lost: AtomicU64::new(0) }
    }

    /// How many threads take part in this job.
    pub fn threads(&self) -> usize {
        self.threads.load(Ordering::Relaxed)
    }

    /// Waits for the others. What any thread wrote before is seen by all afterwards.
    pub fn wait(&self) {
        let threads = self.threads();
        if threads == 1 {
            return;
        }
        let round = self.round.0.load(Ordering::Acquire);
        if self.arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == threads {
            self.arrived.0.store(0, Ordering::Relaxed);
            self.round.0.store(round.wrapping_add(1), Ordering::Release);
            return;
        }
        let (mut looks, mut yielding) = (0, None);
        while self.round.0.load(Ordering::Acquire) == round {
            looks += 1;
            if looks < SPINS {
                spin_loop();
            } else {
                yielding.get_or_insert_with(Instant::now);
                yield_now();
            }
        }
        if let Some(since) = yielding {
            self.lost.fetch_add(since.elapsed().as_nanos() as u64, Ordering::Relaxed);
        }
    }
}

type Job = *const (dyn Fn(usize, &Barrier) + Sync);

struct Board {
    /// Written by `Team::run` alone, before it raises `posted`; read by the workers after they have seen that.
    job: UnsafeCell<Option<Job>>,
    /// The number of the job times `MOST_THREADS`, plus how many workers it is for: the first ones.
    posted: Apart<AtomicUsize>,
    leaving: AtomicBool,
    barrier: Barrier,
}

/// Of a team.
const MOST_THREADS: usize = 1024;

// SAFETY: `job` is written while all workers wait for `posted` to change, and read after they have seen it change (Release
// and Acquire order the two), until they meet at the barrier that `run` waits for before it returns. All else is atomic.
unsafe impl Sync for Board {}
// SAFETY: as above; the job that the pointer names is Sync, and is called while `run` keeps it alive.
unsafe impl Send for Board {}

/// The calling thread and `threads - 1` workers, which sleep between jobs.
pub struct Team {
    board: Arc<Board>,
    workers: Vec<JoinHandle<()>>,
    pace: Pace,
}

impl Team {
    /// A team of at most `threads`, the caller included.
    pub fn new(threads: usize) -> std::io::Result<Team> {
        let threads = threads.min(MOST_THREADS);
        let board = Arc::new(Board {
            job: UnsafeCell::new(None),
            posted: Apart(AtomicUsize::new(0)),
            leaving: AtomicBool::new(false),
            barrier: Barrier::new(),
        });
        let mut workers = Vec::new();
        for index in 1..threads {
            let board = Arc::clone(&board);
            let builder = std::thread::Builder::new().name(format!("nutshell-decode-{index}"));
            workers.push(builder.spawn(move || work(&board, index))?);
        }
        Ok(Team { board, workers, pace: Pace::new(threads) })
    }

    /// Calls `job(thread, barrier)` on `barrier.threads()` threads at once and returns when all have returned.
    pub fn run(&mut self, job: &(dyn Fn(usize, &Barrier) + Sync)) {
        let guard = AbortOnPanic;
        // SAFETY: only the lifetime is forgotten. Workers use the job before the last barrier below, which this call waits for.
        let forever = unsafe {
            std::mem::transmute::<&(dyn Fn(usize, &Barrier) + Sync), &'static (dyn Fn(usize, &Barrier) + Sync)>(job)
        };
        let (board, began, workers) = (&self.board, Instant::now(), self.pace.threads - 1);
        // SAFETY: `&mut self`: no other job is running, so no worker reads the job before `posted` says that it is for it.
        unsafe { *board.job.get() = Some(forever) };
        board.barrier.threads.store(workers + 1, Ordering::Relaxed);
        let number = board.posted.0.load(Ordering::Relaxed) / MOST_THREADS + 1;
        board.posted.0.store(number.wrapping_mul(MOST_THREADS) + workers, Ordering::Release);
        for worker in &self.workers[..workers] {
            worker.thread().unpark();
        }
        job(0, &board.barrier);
        board.barrier.wait();
        if self.pace.most > 1 {
            self.pace.note(began.elapsed(), Duration::from_nanos(board.barrier.lost.swap(0, Ordering::Relaxed)));
        }
        std::mem::forget(guard);
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.board.leaving.store(true, Ordering::Release);
        self.board.posted.0.fetch_add(MOST_THREADS, Ordering::Release);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            let _ = worker.join();
        }
    }
}

/// A thread that panics would leave the others at a barrier for ever.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        std::process::abort();
    }
}

fn work(board: &Board, index: usize) {
    let guard = AbortOnPanic;
    let mut seen = 0;
    loop {
        let mut looks = 0;
        while board.posted.0.load(Ordering::Acquire) == seen {
            looks += 1;
            if looks < SPINS {
                spin_loop();
            } else if looks < SPINS + YIELDS {
                yield_now();
            } else {
                park();
            }
        }
        seen = board.posted.0.load(Ordering::Acquire);
        if board.leaving.load(Ordering::Acquire) {
            std::mem::forget(guard);
            return;
        }
        if index > seen % MOST_THREADS {
            continue; // not for this one: `run` does not wait for it, and may post the next at any time
        }
        // SAFETY: `posted` says that the job is for this worker, so `run` has written it and keeps it alive until the barrier below.
        let job = unsafe { (*board.job.get()).map(|job| &*job) };
        if let Some(job) = job {
            job(index, &board.barrier);
        }
        board.barrier.wait();
    }
}

/// A part of 0..count for one of `threads`.
pub fn share(count: usize, threads: usize, thread: usize) -> Range<usize> {
    count * thread / threads..count * (thread + 1) / threads
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_runs_once_on_each_of_its_threads_however_many_those_are() {
        let mut team = Team::new(4).expect("threads");
        for job in 0..2_000 {
            let expected = job * 7 % 11 % 4 + 1;
            team.pace = Pace::new(4);
            team.pace.threads = expected;
            let calls: [AtomicUsize; 4] = Default::default();
            team.run(&|thread, barrier| {
                assert_eq!(barrier.threads(), expected);
                calls[thread].fetch_add(1, Ordering::Relaxed);
                barrier.wait();
                assert!(calls[..expected].iter().all(|calls| calls.load(Ordering::Relaxed) == 1));
            });
            assert!(calls
                .iter()
                .enumerate()
                .all(|(thread, n)| n.load(Ordering::Relaxed) == usize::from(thread < expected)));
        }
    }
}
