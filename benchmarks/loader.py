"""The loader of pretraining beside nanochat's: tokens a second from Parquet to batches, and the share each throws away.

    python benchmarks/loader.py --data SHARDS [--nanochat FOLDER] [--context 512 2048]

Both go through the train shards once, tokenizing included, with the same tokenizer (vocabulary 8,192, trained on them), in turns,
nanochat in a process of its own. A token is delivered when it is in a row; thrown away are text tokens that were read and never
come, and not those that wait in a buffer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from nanochat_driver import drive, prepare

from nutshell.data.loader import PretrainLoader
from nutshell.data.shards import Shards, open_shards
from nutshell.report.provenance import processor
from nutshell.tokenizer import Tokenizer

TARGET = 5e6


def our_loader(shards: Shards, tok: Tokenizer, rows: int, context: int) -> PretrainLoader:
    return PretrainLoader(shards, tok.encode_batch, tok.bos_id, rows, context + 1)


def our_rate(shards: Shards, tok: Tokenizer, rows: int, context: int) -> float:
    """Tokens a second over one epoch."""
    start, tokens = time.perf_counter(), 0
    with our_loader(shards, tok, rows, context) as loader:
        for inputs, _ in loader:
            tokens += inputs.numel()
            if loader.epoch >= 1:
                return tokens / (time.perf_counter() - start)
    raise AssertionError("a loader has no end")


def our_waste(shards: Shards, tok: Tokenizer, context: int) -> float:
    """Share of the text tokens of one epoch that are neither in its rows nor handed on to the next."""

    def text_tokens(ids: list[int]) -> int:
        return sum(id != tok.bos_id for id in ids)

    blocks = range(shards.blocks("train"))
    total = sum(len(tok.encode_batch(shards.read("train", block))[0]) for block in blocks)
    delivered = 0
    with our_loader(shards, tok, 1, context) as loader:
        for inputs, targets in loader:
            if loader.epoch >= 1:  # one row into the next epoch, which began with this carry
                return 1 - (delivered + sum(text_tokens(ids) for ids, _ in loader.state_dict()["carry"])) / total
            delivered += int((inputs != tok.bos_id).sum()) + int((targets[:, -1] != tok.bos_id).sum())
    raise AssertionError("a loader has no end")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of train-*.parquet and val-*.parquet")
    parser.add_argument("--nanochat", type=Path, help="a checkout of nanochat; without it only ours is measured")
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer; default: trained on the shards")
    parser.add_argument("--context", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    shards = open_shards(options.data)
    train = sorted(options.data.glob("train-*.parquet"))
    tok = Tokenizer.load(options.tokenizer) if options.tokenizer else Tokenizer.train(train, vocab_size=8192)
    with tempfile.TemporaryDirectory() as folder:
        if options.nanochat:
            prepare(Path(folder), options.data, tok)
        for context in options.context:
            ours: list[float] = []
            theirs: list[dict[str, float]] = []
            for _ in range(options.rounds):
                ours.append(our_rate(shards, tok, options.rows, context))
                if options.nanochat:
                    printed = drive("load", options.nanochat, Path(folder), options.rows, context)
                    theirs.append(json.loads(printed.splitlines()[-1]))
            rate, waste = statistics.median(ours), our_waste(shards, tok, context)
            spread = f"{min(ours) / 1e6:.2f} to {max(ours) / 1e6:.2f}"
            print(f"context {context}, {options.rows} rows, {options.rounds} turns, {os.cpu_count()} cores of {processor()}")
            target = f"target {TARGET / 1e6:.0f} M, 0%"
            print(f"  ours      {rate / 1e6:5.2f} M tokens/s ({spread}); thrown away {waste:.2%}; {target}")
            if theirs:
                rates = [each["rate"] for each in theirs]
                median, spread = statistics.median(rates), f"{min(rates) / 1e6:.2f} to {max(rates) / 1e6:.2f}"
                print(f"  nanochat  {median / 1e6:5.2f} M tokens/s ({spread}); thrown away {theirs[0]['waste']:.2%}")
                print(f"  ours / nanochat: {rate / median:.1f}")


if __name__ == "__main__":
    main()
