"""Tokenizer speed: ours, each peer's, and the ratio, in one run on the same text.

    python benchmarks/tokenizer.py --data FILES_OR_FOLDERS [--more code=FILE chinese=FILE] [--ranks FILE.tiktoken]

Texts are .txt, .jsonl and .parquet (column `text`); without `--data` the embedded primer is used. Peers (rustbpe,
tiktoken, tokenizers) are measured where they are installed: `pip install "nutshell-lm[bench]"`. All encode with the
same vocabulary, and their ids are compared with ours before anything is timed. Runs of ours and of the peers take
turns, so that a busy minute hits all of them, and the fastest of each counts: noise only ever adds.
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

from nutshell.data.text import read_documents
from nutshell.report.provenance import processor
from nutshell.tokenizer import Tokenizer

Work = Callable[[], Any]


def seconds_of(work: Work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def fastest(works: dict[str, Work], rounds: int) -> dict[str, float]:
    """Seconds of the fastest run of each, taking turns."""
    best = dict.fromkeys(works, float("inf"))
    for _ in range(rounds):
        for name, work in works.items():
            best[name] = min(best[name], seconds_of(work))
    return best


def line(what: str, seconds: dict[str, float], megabytes: float) -> None:
    ours = seconds["ours"]
    cells = [f"{what:<42} ours {megabytes / ours:7.1f} MB/s"]
    cells += [f"{name} {megabytes / s:6.1f} ({s / ours:.1f}x)" for name, s in seconds.items() if name != "ours"]
    print("   ".join(cells), flush=True)


def take(texts: Iterable[str], megabytes: float) -> list[str]:
    taken, size = [], 0.0
    for text in texts:
        taken.append(text)
        size += len(text.encode()) / 1e6
        if size >= megabytes:
            break
    return taken


def size_of(texts: list[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def trainers(texts: list[str], vocab_size: int, pattern: str) -> dict[str, Work]:
    works: dict[str, Work] = {"ours": lambda: Tokenizer.train(texts, vocab_size, pattern)}
    if installed("rustbpe"):
        import rustbpe

        works["rustbpe"] = lambda: rustbpe.Tokenizer().train_from_iterator(iter(texts), vocab_size, pattern=pattern)
    if installed("tokenizers"):
        from tokenizers import Regex, models, pre_tokenizers
        from tokenizers import Tokenizer as Peer
        from tokenizers.trainers import BpeTrainer

        def train() -> None:
            peer = Peer(models.BPE())
            split = pre_tokenizers.Split(Regex(pattern), "isolated")
            byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            peer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            os.environ["TOKENIZERS_PARALLELISM"] = "true"
            trainer = BpeTrainer(vocab_size=vocab_size, show_progress=False, initial_alphabet=alphabet)
            peer.train_from_iterator(iter(texts), trainer)

        works["tokenizers"] = train
    return works


class Peer:
    """What a tokenizer does, under names that all of them share."""

    def __init__(self, one: Callable[[str], list[int]], batch: Callable[[list[str]], Any], back: Callable[[list[int]], str]):
        self.one, self.batch, self.back = one, batch, back


def encoders(tok: Tokenizer) -> dict[str, Peer]:
    """Ours, and each installed peer with the same vocabulary; batches on one thread."""
    found = {"ours": Peer(tok.encode, lambda texts: tok.encode_batch(texts, threads=1), tok.decode)}
    if installed("tiktoken"):
        import tiktoken

        ranks = {tok.token_bytes(id): id for id in range(tok.vocab_size) if tok.token_bytes(id)}
        tik = tiktoken.Encoding("ours", pat_str=tok.pattern, mergeable_ranks=ranks, special_tokens=tok.special_tokens)
        found["tiktoken"] = Peer(tik.encode_ordinary, lambda texts: [tik.encode_ordinary(text) for text in texts], tik.decode)
    if installed("tokenizers"):
        from tokenizers import Tokenizer as Other

        with tempfile.TemporaryDirectory() as folder:
            tok.save(folder)
            other = Other.from_file(str(Path(folder) / "tokenizer.json"))
        other.encode_special_tokens = True
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        found["tokenizers"] = Peer(lambda text: other.encode(text).ids, other.encode_batch_fast, other.decode)
    return found


def compare(what: str, tok: Tokenizer, texts: list[str], rounds: int = 3) -> None:
    """Encode and decode the same texts with all."""
    peers, size = encoders(tok), size_of(texts)
    expected = [tok.encode(text) for text in texts]
    for name, peer in peers.items():
        if [peer.one(text) for text in texts[:200]] != expected[:200]:
            raise SystemExit(f"{name} gives other ids: the comparison would mean nothing")
    works = {name: lambda peer=peer: peer.batch(texts) for name, peer in peers.items()}
    line(f"{what}: batch, one thread", fastest(works, rounds), size)
    works = {name: lambda peer=peer: [peer.one(text) for text in texts] for name, peer in peers.items()}
    line(f"{what}: one by one to lists", fastest(works, rounds), size)
    works = {name: lambda peer=peer: [peer.back(ids) for ids in expected] for name, peer in peers.items()}
    line(f"{what}: decode lists", fastest(works, rounds), size)


def compare_new(tok: Tokenizer, parts: list[list[str]]) -> None:
    """Each part once, as text that no cache has met: the median rate over the parts."""
    rates: dict[str, list[float]] = {}
    peers = encoders(tok)
    for peer in peers.values():
        peer.batch(parts[0])
    for part in parts[1:]:
        for name, peer in peers.items():
            rates.setdefault(name, []).append(seconds_of(lambda peer=peer, part=part: peer.batch(part)) / size_of(part))
    line("english, new text: batch, one thread", {name: sorted(each)[len(each) // 2] for name, each in rates.items()}, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Tokenizer speed against rustbpe, tiktoken and tokenizers.")
    parser.add_argument("--data", type=Path, nargs="+", help="files or folders of text; default: the embedded primer")
    parser.add_argument("--more", nargs="*", default=[], metavar="NAME=FILE", help="further texts to encode")
    parser.add_argument("--ranks", type=Path, nargs="*", default=[], help="files of other tokenizers to encode with as well")
    parser.add_argument("--megabytes", type=float, default=40.0, help="text to train on; 10 MB of it are encoded")
    parser.add_argument("--vocab-size", type=int, default=32768)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each; the fastest counts")
    arguments = parser.parse_args()
    if arguments.data:
        source = read_documents(arguments.data)
    else:
        from nutshell.data.primer import documents

        source = documents(0, int(arguments.megabytes * 1e6))
    texts = take(source, arguments.megabytes)
    print(
        f"{len(texts)} texts, {size_of(texts):.1f} MB, {os.cpu_count()} cores of {processor()}, vocabulary {arguments.vocab_size}"
    )

    tok = Tokenizer.train(texts, arguments.vocab_size)
    seconds = fastest(trainers(texts, arguments.vocab_size, tok.pattern), min(arguments.rounds, 2))
    line("train, all cores", seconds, size_of(texts))

    english = take(texts, 10)
    compare("english", tok, english, arguments.rounds)
    step = max(1, len(texts) // 12)
    compare_new(tok, [texts[start : start + step] for start in range(0, len(texts) - step + 1, step)])
    threads = {"ours": lambda: tok.encode_batch(english, threads=2), "one": lambda: tok.encode_batch(english, threads=1)}
    line("english: batch, two threads against one", fastest(threads, 2 * arguments.rounds), size_of(english))
    pieces: dict[str, list[str]] = {}
    for entry in arguments.more:
        name, _, file = entry.partition("=")
        text = Path(file).read_text(encoding="utf-8")
        # Pieces of the length of a page, each repeated, so that a run is long enough to be timed.
        pieces[name] = [text[start : start + 2000] for start in range(0, len(text), 2000)] * max(1, int(2e6 / len(text.encode())))
        compare(name, tok, pieces[name], arguments.rounds)
    for file in arguments.ranks:
        other = Tokenizer.load(file)
        for name, some in {"english": english, **pieces}.items():
            compare(f"{file.stem}, {name}", other, some, arguments.rounds)
    opening(arguments.vocab_size, texts)


def opening(vocab_size: int, texts: list[str]) -> None:
    """From a file to a tokenizer that encodes, for the vocabulary at hand and one of 65,536."""
    for size in (vocab_size, 65536):
        tok = Tokenizer.train(texts, size)
        with tempfile.TemporaryDirectory() as folder:
            tok.save(folder)
            seconds = fastest({"ours": lambda folder=folder: Tokenizer.load(folder)}, 7)["ours"]
        print(f"open a saved tokenizer of {tok.vocab_size} tokens: {seconds * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
