//! Threads that run one function together, and what they share meanwhile.

use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread::{park, yield_now, JoinHandle};

/// Looks at a flag before the thread gives its core away: more costs milliseconds where cores are busy.
const SPINS: usize = 400;
/// Offers of the core before a thread without work goes to sleep.
const YIELDS: usize = 200;

/// One atomic in a cache line of its own.
#[repr(align(128))]
struct Apart<T>(T);

/// Lets nobody pass before all have come.
pub struct Barrier {
    threads: usize,
    arrived: Apart<AtomicUsize>,
    round: Apart<AtomicUsize>,
}

impl Barrier {
    fn new(threads: usize) -> Barrier {
        Barrier { threads, arrived: Apart(AtomicUsize::new(0)), round: Apart(AtomicUsize::new(0)) }
    }

    /// Waits for the others. What any thread wrote before is seen by all afterwards.
    pub fn wait(&self) {
        if self.threads == 1 {
            return;
        }
        let round = self.round.0.load(Ordering::Acquire);
        if self.arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
            self.arrived.0.store(0, Ordering::Relaxed);
            self.round.0.store(round.wrapping_add(1), Ordering::Release);
            return;
        }
        let mut looks = 0;
        while self.round.0.load(Ordering::Acquire) == round {
            looks += 1;
            if looks < SPINS {
                spin_loop()
            } else {
                yield_now()
            }
        }
    }
}

type Job = *const (dyn Fn(usize, &Barrier) + Sync);

struct Board {
    /// Written by `Team::run` alone, before it raises `posted`; read by the workers after they have seen that.
    job: UnsafeCell<Option<Job>>,
    posted: Apart<AtomicUsize>,
    leaving: AtomicBool,
    barrier: Barrier,
}

// SAFETY: `job` is written while all workers wait for `posted` to change, and read after they have seen it change (Release
// and Acquire order the two), until they meet at the barrier that `run` waits for before it returns. All else is atomic.
unsafe impl Sync for Board {}
// SAFETY: as above; the job that the pointer names is Sync, and is called while `run` keeps it alive.
unsafe impl Send for Board {}

/// The calling thread and `threads - 1` workers, which sleep between jobs.
pub struct Team {
    board: Arc<Board>,
    workers: Vec<JoinHandle<()>>,
}

impl Team {
    /// A team of `threads`, the caller included.
    pub fn new(threads: usize) -> std::io::Result<Team> {
        let board = Arc::new(Board {
            job: UnsafeCell::new(None),
            posted: Apart(AtomicUsize::new(0)),
            leaving: AtomicBool::new(false),
            barrier: Barrier::new(threads),
        });
        let mut workers = Vec::new();
        for index in 1..threads {
            let board = Arc::clone(&board);
            let builder = std::thread::Builder::new().name(format!("nutshell-decode-{index}"));
            workers.push(builder.spawn(move || work(&board, index))?);
        }
        Ok(Team { board, workers })
    }

    /// Calls `job(thread, barrier)` on all threads at once and returns when all have returned.
    pub fn run(&mut self, job: &(dyn Fn(usize, &Barrier) + Sync)) {
        let guard = AbortOnPanic;
        // SAFETY: only the lifetime is forgotten. Workers use the job before the last barrier below, which this call waits for.
        let forever = unsafe {
            std::mem::transmute::<&(dyn Fn(usize, &Barrier) + Sync), &'static (dyn Fn(usize, &Barrier) + Sync)>(job)
        };
        // SAFETY: `&mut self`: no other job is running, so all workers wait for `posted`.
        unsafe { *self.board.job.get() = Some(forever) };
        self.board.posted.0.fetch_add(1, Ordering::Release);
        for worker in &self.workers {
            worker.thread().unpark();
        }
        job(0, &self.board.barrier);
        self.board.barrier.wait();
        std::mem::forget(guard);
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.board.leaving.store(true, Ordering::Release);
        self.board.posted.0.fetch_add(1, Ordering::Release);
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
        seen += 1;
        if board.leaving.load(Ordering::Acquire) {
            std::mem::forget(guard);
            return;
        }
        // SAFETY: `posted` has changed, so `run` has written the job and keeps it alive until the barrier below.
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

/// A matrix of activations (tokens, stride) that all threads read and each writes its own columns or tokens of.
pub struct Shared {
    data: Box<[UnsafeCell<f32>]>,
    stride: usize,
}

// SAFETY: the methods below say what their callers keep to; with it no two threads touch one number while one of them writes.
unsafe impl Sync for Shared {}

impl Shared {
    /// Zeros.
    pub fn new(tokens: usize, stride: usize) -> Shared {
        Shared { data: (0..tokens * stride).map(|_| UnsafeCell::new(0.0)).collect(), stride }
    }

    fn cells(&self, token: usize, columns: Range<usize>) -> &[UnsafeCell<f32>] {
        &self.data[token * self.stride..(token + 1) * self.stride][columns]
    }

    /// # Safety
    /// From the last barrier to the next no thread writes these columns of this token while the slice is alive.
    pub unsafe fn get(&self, token: usize, columns: Range<usize>) -> &[f32] {
        let cells = self.cells(token, columns);
        // SAFETY: the cells are neighbours in memory, and by the caller's promise nobody writes them.
        unsafe { std::slice::from_raw_parts(UnsafeCell::raw_get(cells.as_ptr()), cells.len()) }
    }

    /// # Safety
    /// From the last barrier to the next no other thread reads or writes these columns of this token, and this thread holds no
    /// other slice of them.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn get_mut(&self, token: usize, columns: Range<usize>) -> &mut [f32] {
        let cells = self.cells(token, columns);
        // SAFETY: the cells are neighbours in memory, and by the caller's promise nobody else touches them.
        unsafe { std::slice::from_raw_parts_mut(UnsafeCell::raw_get(cells.as_ptr()), cells.len()) }
    }
}
