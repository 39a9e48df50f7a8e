"""Training a tokenizer on two billion characters: seconds, and the memory at its peak.

    python benchmarks/tokenizer_large.py --data FILES_OR_FOLDERS [--characters 2e9] [--threads 2]

There is rarely that much text at hand, so what there is comes again and again, each time with other letters in place
of its own: new words keep coming, more of them than real text of that size has. `--repeat` gives the same text again.
The text is made on the way, and the time for that is included.
"""

from __future__ import annotations

import argparse
import random
import resource
import string
import time
from collections.abc import Iterator
from pathlib import Path

from nutshell.data.text import read_documents
from nutshell.report.provenance import processor
from nutshell.tokenizer import Tokenizer


def with_letters_mixed(text: bytes, seed: int) -> str:
    mixed = "".join(random.Random(seed).sample(string.ascii_lowercase, 26))
    both = (string.ascii_lowercase + string.ascii_uppercase).encode()
    return text.translate(bytes.maketrans(both, (mixed + mixed.upper()).encode())).decode()


def texts(sources: list[Path], characters: float, repeat: bool) -> Iterator[str]:
    done, seed = 0, 0
    while done < characters:
        for text in read_documents(sources):
            yield with_letters_mixed(text.encode(), seed) if seed and not repeat else text
            done += len(text)
            if done >= characters:
                return
        seed += 1


def main() -> None:
    parser = argparse.ArgumentParser(description="Tokenizer training on two billion characters.")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="files or folders of text")
    parser.add_argument("--characters", type=float, default=2e9)
    parser.add_argument("--vocab-size", type=int, default=32768)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", action="store_true", help="the same text again, letters as they are")
    options = parser.parse_args()
    started = time.perf_counter()
    read = [0, 0.0]

    def progress(stage: str, done: int) -> None:
        if stage == "read":
            read[:] = done, time.perf_counter() - started

    source = texts(options.data, options.characters, options.repeat)
    tok = Tokenizer.train(source, options.vocab_size, threads=options.threads, progress=progress)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{tok.vocab_size} tokens from {read[0] / 1e9:.2f} billion characters on {options.threads} threads: {seconds:.1f} s "
        f"(making, reading and counting {read[1]:.1f} s, merging {seconds - read[1]:.1f} s), {peak:.2f} GB at the peak; "
        f"{processor()}"
    )


if __name__ == "__main__":
    main()
