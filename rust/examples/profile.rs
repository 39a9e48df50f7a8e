//! Where the time goes on one thread: each step of encoding a text, and reading its memory once as
//! the limit of them all.
//!
//!     cargo run --release --example profile -- TOKENIZER.json TEXT_FILE

use std::hint::black_box;
use std::time::Instant;

use nutshell_bpe::{formats, pool, Counter, Encoder, Splitter};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, tokenizer, file] = &arguments[..] else {
        return Err("usage: profile TOKENIZER.json TEXT_FILE".into());
    };
    let definition = formats::parse(&std::fs::read(tokenizer)?, tokenizer, None)?;
    let splitter = Splitter::new(&definition.pattern)?;
    let encoder = Encoder::open(&definition)?;
    let bytes = std::fs::read(file)?;
    let text = std::str::from_utf8(&bytes)?;
    let ids = encoder.encode(text)?;
    let mut pieces = 0u64;
    splitter.for_each(text, |_| pieces += 1)?;
    println!("{} bytes, {pieces} pieces, {} tokens", text.len(), ids.len());

    let report = |what: &str, work: &dyn Fn()| {
        let fastest = (0..7).map(|_| {
            let started = Instant::now();
            work();
            started.elapsed().as_secs_f64()
        });
        let seconds = fastest.fold(f64::INFINITY, f64::min);
        let size = text.len() as f64;
        println!("{what:<34} {:8.0} MB/s {:6.2} ns a piece", size / seconds / 1e6, seconds * 1e9 / pieces as f64);
    };
    report("read the memory", &|| {
        let words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
        black_box(words.fold(0, u64::wrapping_add));
    });
    report("check UTF-8", &|| assert!(black_box(std::str::from_utf8(&bytes)).is_ok()));
    report("split", &|| {
        let mut sum = 0;
        splitter.for_each(text, |piece| sum += piece.len()).expect("it did before");
        black_box(sum);
    });
    report("split and count (training)", &|| {
        let counter = Counter::new(splitter.another(), pool(1));
        counter.add(&[text]).expect("it did before");
        black_box(counter.len());
    });
    report("encode", &|| drop(black_box(encoder.encode(text))));
    report("decode", &|| drop(black_box(encoder.decode(&ids))));
    Ok(())
}
