"""Tokenizer speed: ours, each peer's, and the ratio, in one run on the same text.

    python benchmarks/tokenizer.py --data FILE_OR_FOLDER [--megabytes 20] [--vocab-size 32768]

`--data` takes .txt, .jsonl and .parquet (column `text`); without it the embedded primer is used. Peers (rustbpe,
tiktoken, tokenizers) are measured where they are installed: `pip install "nutshell-lm[bench]"`. All encode with the
same vocabulary, and their ids are compared with ours before anything is timed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from nutshell.tokenizer import Tokenizer
from nutshell.tokenizer.sources import texts_of


def best_seconds(work: Callable[[], Any], repeats: int = 3) -> float:
    """The fastest of a few runs: noise only ever adds."""
    spent = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        spent.append(time.perf_counter() - started)
    return min(spent)


def line(what: str, ours: float, peers: dict[str, float], megabytes: float) -> None:
    cells = [f"{what:<34} ours {megabytes / ours:8.1f} MB/s"]
    cells += [f"{name} {megabytes / seconds:6.1f} MB/s ({seconds / ours:.1f}x)" for name, seconds in peers.items()]
    print("   ".join(cells), flush=True)


def take(texts: Iterable[str], megabytes: float) -> list[str]:
    taken, size = [], 0.0
    for text in texts:
        taken.append(text)
        size += len(text.encode()) / 1e6
        if size >= megabytes:
            break
    return taken


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def train_peers(texts: list[str], vocab_size: int, pattern: str) -> dict[str, float]:
    seconds = {}
    if installed("rustbpe"):
        import rustbpe

        peer = rustbpe.Tokenizer()
        seconds["rustbpe"] = best_seconds(lambda: peer.train_from_iterator(iter(texts), vocab_size, pattern=pattern), 1)
    if installed("tokenizers"):
        from tokenizers import Regex, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Peer

        peer = Peer(models.BPE())
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        peer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        seconds["tokenizers"] = best_seconds(lambda: peer.train_from_iterator(iter(texts), trainer), 1)
    return seconds


def encoders(tok: Tokenizer) -> dict[str, tuple[Callable[[str], list[int]], Callable[[list[str]], Any], Callable]]:
    """Per peer: one text to a list of ids, many texts on one thread, ids to text."""
    found: dict[str, Any] = {}
    if installed("tiktoken"):
        import tiktoken

        ranks = {tok.token_bytes(id): id for id in range(tok.bos_id)}
        peer = tiktoken.Encoding("ours", pat_str=tok.pattern, mergeable_ranks=ranks, special_tokens=tok.special_tokens)
        found["tiktoken"] = (
            peer.encode_ordinary,
            lambda texts: [peer.encode_ordinary(text) for text in texts],
            peer.decode,
        )
    if installed("tokenizers"):
        from tokenizers import Tokenizer as Peer

        with tempfile.TemporaryDirectory() as folder:
            tok.save(folder)
            other = Peer.from_file(str(Path(folder) / "tokenizer.json"))
        other.encode_special_tokens = True
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        found["tokenizers"] = (lambda text: other.encode(text).ids, other.encode_batch_fast, other.decode)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Tokenizer speed against rustbpe, tiktoken and tokenizers.")
    parser.add_argument("--data", type=Path, help="file or folder of text; default: the embedded primer")
    parser.add_argument("--megabytes", type=float, default=20.0, help="text to train on; a quarter of it is encoded")
    parser.add_argument("--vocab-size", type=int, default=32768)
    arguments = parser.parse_args()
    if arguments.data:
        source = texts_of([arguments.data])
    else:
        from nutshell.data.primer import documents

        source = documents(0, int(arguments.megabytes * 1e6))
    texts = take(source, arguments.megabytes)
    size = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{len(texts)} texts, {size:.1f} MB, {os.cpu_count()} cores, vocabulary {arguments.vocab_size}")

    tok = Tokenizer.train(texts[:1], vocab_size=265)  # loads what is loaded once
    seconds = best_seconds(lambda: Tokenizer.train(texts, vocab_size=arguments.vocab_size))
    tok = Tokenizer.train(texts, vocab_size=arguments.vocab_size)
    line("train, all cores", seconds, train_peers(texts, arguments.vocab_size, tok.pattern), size)

    texts = take(texts, arguments.megabytes / 4)
    size = sum(len(text.encode()) for text in texts) / 1e6
    peers = encoders(tok)
    expected = [tok.encode(text) for text in texts]
    for name, (encode, _, _) in peers.items():
        if [encode(text) for text in texts[:200]] != expected[:200]:
            raise SystemExit(f"{name} gives other ids: the comparison would mean nothing")
    batch = {name: best_seconds(lambda encode=encode: encode(texts), 2) for name, (_, encode, _) in peers.items()}
    one_thread = best_seconds(lambda: tok.encode_batch(texts, threads=1))
    line("encode a batch, one thread", one_thread, batch, size)
    two_threads = best_seconds(lambda: tok.encode_batch(texts, threads=2))
    line("encode a batch, two threads", two_threads, {"one thread": one_thread}, size)
    single = {
        name: best_seconds(lambda encode=encode: [encode(text) for text in texts], 2) for name, (encode, _, _) in peers.items()
    }
    line("encode one by one to lists", best_seconds(lambda: [tok.encode(text) for text in texts]), single, size)
    back = {
        name: best_seconds(lambda decode=decode: [decode(ids) for ids in expected], 2) for name, (_, _, decode) in peers.items()
    }
    line("decode one by one", best_seconds(lambda: [tok.decode(ids) for ids in expected]), back, size)
    with tempfile.TemporaryDirectory() as folder:
        tok.save(folder)
        print(f"open a saved tokenizer: {best_seconds(lambda: Tokenizer.load(folder)) * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
