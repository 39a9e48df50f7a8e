#![doc = include_str!("../README.md")]
#![cfg_attr(not(feature = "python"), deny(unsafe_code))]
#![warn(missing_docs)]

mod characters;
mod count;
pub mod decode;
mod definition;
mod encode;
mod error;
pub mod formats;
mod hash;
mod merge;
#[cfg(feature = "python")]
mod python;
mod scan;
pub mod split;
mod symbols;
mod table;
mod train;
mod unicode;
mod vocabulary;

use std::sync::{Arc, Mutex, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder};

pub use count::{Counter, WordCounts};
pub use definition::{Definition, Merge};
pub use encode::{Batch, Encoder};
pub use error::Error;
pub use split::Splitter;
pub use train::train;

/// Most bytes that one piece, or all different pieces of a training text, may have.
pub const MAX_BYTES: usize = 0x7FFF_0000;

/// A pool of `threads` threads; 0 is one per core, or what `RAYON_NUM_THREADS` says. Pools are made
/// on first use and kept. A child process made by `fork` has none of its parent's threads, so it
/// gets pools of its own instead of waiting forever for the parent's.
pub fn pool(threads: usize) -> Arc<ThreadPool> {
    type Known = (u32, usize, Arc<ThreadPool>);
    static POOLS: Mutex<Vec<Known>> = Mutex::new(Vec::new());
    let process = std::process::id();
    let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, _, pool)) = pools.iter().find(|(owner, size, _)| *owner == process && *size == threads) {
        return Arc::clone(pool);
    }
    let pool = ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("nutshell-bpe-{index}"))
        .build()
        .expect("the operating system starts threads");
    let pool = Arc::new(pool);
    pools.push((process, threads, Arc::clone(&pool)));
    pool
}
