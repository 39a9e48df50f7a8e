"""nanochat beside ours: its own `scripts/base_train.py` or its loader, run as they are in a process of their own.

`pretraining.py` and `loader.py` call this. Only what is handed over is ours: a folder with the same shards and the same
tokenizer (`prepare`), an empty wandb (a run without a name does not use it), and the rows it is scored on. Model, optimizer,
rules for rates and decay, schedules, loader, compilation and the timing of a step are nanochat's.

    NANOCHAT_BASE_DIR=FOLDER python benchmarks/nanochat_driver.py train NANOCHAT OUT.jsonl ROWS.npz 0,97,194 --depth=4 ...
    NANOCHAT_BASE_DIR=FOLDER python benchmarks/nanochat_driver.py rows NANOCHAT OUT.npy BATCHES CONTEXT
    NANOCHAT_BASE_DIR=FOLDER python benchmarks/nanochat_driver.py load NANOCHAT ROWS CONTEXT

`train` takes the steps after which it is scored, then flags of base_train.py. ROWS.npz holds `ours` (inputs and targets) and
`theirs`, the latter for a second score after the last step. Lines are {"step", "step_seconds", "loss"} and {"step", "tokens",
"seconds", "bpb"}, at the end with "their_bpb", where seconds are those of all steps before, without evaluation; the first
step, which compiles, counts as much as the second. `rows` saves the validation rows as its loader packs them. `load` prints
{"rate", "waste"} of one pass over the train shards.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import runpy
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

ROWS_AT_ONCE = 32
"""Rows of its device batch, so that an evaluation has the shape it was compiled for."""


def prepare(base: Path, data: Path, tok: Any) -> None:
    """Make `base` what NANOCHAT_BASE_DIR must be: links to the shards, the last of them for validation, and the tokenizer."""
    import tiktoken
    import torch

    shards = base / "base_data_climbmix"
    shards.mkdir(parents=True)
    for path in sorted(data.glob("*.parquet")):  # train-* come before val-*
        (shards / path.name).symlink_to(path.resolve())
    lengths = torch.from_numpy(tok.token_byte_lengths())
    ranks = {tok.token_bytes(id): id for id in range(tok.vocab_size) if lengths[id]}
    encoding = tiktoken.Encoding("ours", pat_str=tok.pattern, mergeable_ranks=ranks, special_tokens=tok.special_tokens)
    (base / "tokenizer").mkdir()
    (base / "tokenizer" / "tokenizer.pkl").write_bytes(pickle.dumps(encoding))
    torch.save(lengths.to(torch.int32), base / "tokenizer" / "token_bytes.pt")


def drive(what: str, nanochat: Path, base: Path, *arguments: object, dtype: str = "float32") -> str:
    """Run this file in a process of its own: what it prints. SystemExit with its last words where it fails."""
    environment = {**os.environ, "NANOCHAT_BASE_DIR": str(base), "NANOCHAT_DTYPE": dtype}
    command = [sys.executable, __file__, what, str(nanochat), *map(str, arguments)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"nanochat ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


def train(out: str, rows: str, steps: str, *flags: str) -> None:
    sys.modules["wandb"] = types.ModuleType("wandb")
    import numpy as np
    import torch
    from nanochat import common, loss_eval  # type: ignore[import-not-found]

    step_seconds: list[float] = []
    wanted = {int(step) for step in steps.split(",") if step}
    file = open(out, "w", encoding="utf-8")  # noqa: SIM115 - open as long as the script runs
    show, evaluate = common.print0, loss_eval.evaluate_bpb

    def write(record: dict[str, Any]) -> None:
        file.write(json.dumps(record) + "\n")
        file.flush()

    def note_step(text: str = "", **options: Any) -> None:
        """In place of its print: the line of a step carries its time."""
        found = re.match(r"step (\d+)/.* loss: (\S+) .* dt: (\S+)ms", str(text))
        if found:
            step_seconds.append(float(found[3]) / 1000)
            write({"step": int(found[1]) + 1, "step_seconds": step_seconds[-1], "loss": float(found[2])})
        show(text, **options)

    def evaluate_ours(model: Any, _batches: Any, _steps: int, token_bytes: Any) -> float:
        """In place of its evaluation, which the script calls before every step: its own sum, over our rows."""
        done = len(step_seconds)
        if done not in wanted:
            return float("nan")
        saved = np.load(rows)

        def score(name: str) -> float:
            ids, targets = torch.from_numpy(saved[name])
            batches = list(zip(ids.split(ROWS_AT_ONCE), targets.split(ROWS_AT_ONCE), strict=True))
            return evaluate(model, batches, len(batches), token_bytes)

        bpb = score("ours")
        seconds = sum(step_seconds[1:]) + (step_seconds[1] if done > 1 else sum(step_seconds))
        last = {"their_bpb": score("theirs")} if done == max(wanted) else {}
        write({"step": done, "tokens": done * total_batch, "seconds": seconds, "bpb": bpb, **last})
        return bpb

    total_batch = int(next(flag.partition("=")[2] for flag in flags if flag.startswith("--total-batch-size=")))
    common.print0, loss_eval.evaluate_bpb = note_step, evaluate_ours
    sys.argv = ["base_train.py", *flags, "--eval-every=1", "--core-metric-every=-1", "--sample-every=-1"]
    runpy.run_module("scripts.base_train", run_name="__main__")


def rows(out: str, batches: str, context: str) -> None:
    import numpy as np
    from nanochat import dataloader, tokenizer  # type: ignore[import-not-found]

    loader = dataloader.tokenizing_distributed_data_loader_bos_bestfit(
        tokenizer.get_tokenizer(), ROWS_AT_ONCE, int(context), "val", device="cpu"
    )
    taken = [[part.numpy().copy() for part in next(loader)] for _ in range(int(batches))]
    np.save(out, np.stack([np.concatenate(each) for each in zip(*taken, strict=True)]))


def load(rows: str, context: str) -> None:
    from nanochat import dataloader, tokenizer  # type: ignore[import-not-found]

    tok, encoded, delivered, tokens = tokenizer.get_tokenizer(), 0, 0, 0
    encode, bos = tok.encode, tok.get_bos_token_id()

    def counted(texts: list[str], **options: Any) -> list[list[int]]:
        nonlocal encoded
        documents = encode(texts, **options)
        encoded += sum(map(len, documents)) - len(documents)  # without BOS
        return documents

    tok.encode = counted
    start = time.perf_counter()
    batches = dataloader.tokenizing_distributed_data_loader_with_state_bos_bestfit(
        tok, int(rows), int(context), "train", device="cpu"
    )
    for inputs, targets, state in batches:
        tokens += inputs.numel()
        delivered += int((inputs != bos).sum()) + int((targets[:, -1] != bos).sum())
        if state["epoch"] > 1:
            break
    seconds = time.perf_counter() - start
    waiting = sum(len(document) - 1 for document in batches.gi_frame.f_locals["doc_buffer"])
    print(json.dumps({"rate": tokens / seconds, "waste": 1 - delivered / (encoded - waiting)}))


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[2])
    {"train": train, "rows": rows, "load": load}[sys.argv[1]](*sys.argv[3:])
