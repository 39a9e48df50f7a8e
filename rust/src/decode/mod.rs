//! A decoder-only transformer on CPU: one call runs all layers for the next tokens of many rows.
//!
//! `model` holds the weights, `step` is the order in which all of it happens. `batch` is what a step is asked for, `workspace`
//! its buffers, `matrix` packs weights as fp32, bf16 or int8, `dot` multiplies them with the instructions that the processor has
//! and `output` takes the result, `heads` writes keys and values into the `cache`, `attention` reads them, `table` is the
//! embeddings, `sampling` draws a token, `team` is the threads and `pace` how many of them compute.
//!
//! **Rows do not feel each other.** Every sum is taken in an order that depends on the shape of the model alone, never on
//! how many rows, tokens or threads take part: a row's logits are the same bits alone and in a full batch.

// SAFETY of the whole folder: each `unsafe` says why it holds. They are of three kinds: instructions that were found at run
// time (`dot`, `attention`), buffers whose parts are divided among threads between barriers (`team`, `workspace`), and memory that the
// caller lends for a call (`Cache::new`).
#![allow(unsafe_code)]

mod attention;
mod batch;
mod cache;
mod dot;
mod heads;
mod lanes;
mod math;
mod matrix;
mod model;
mod output;
mod pace;
#[cfg(feature = "python")]
pub(crate) mod python;
mod sampling;
mod step;
mod table;
mod team;
#[cfg(test)]
mod tests;
mod workspace;

pub use batch::{Sequence, Wanted};
pub use cache::{Cache, Element};
pub use dot::{instructions, Level};
pub use matrix::Kind;
pub use model::{Decoder, Shape};
pub use sampling::{draw, Draw};
pub use table::Table;
