"""Pretraining on CPU beside nanochat: tokens a second, and how low bits per byte get in how many minutes.

    python benchmarks/pretraining.py --nanochat FOLDER --data SHARDS                   tokens a second, four layers
    python benchmarks/pretraining.py --nanochat FOLDER --data SHARDS --curve OUT       what is learned, at --depths 2 4 6

FOLDER is a checkout of nanochat, SHARDS a folder of train-*.parquet and val-*.parquet with a column `text`. Width is 64 a
layer, heads of 64, context 512, vocabulary 8,192 trained on the train shards: both get the same tokenizer. nanochat runs its own
base_train.py in a process of its own (nanochat_driver.py), with the flags of its runs/runcpu.sh (16,384 tokens a step, 32
rows at once, window pattern L); a step is timed as it times it, loader included. NANOCHAT_DTYPE=bfloat16 is its bf16 switch,
used where this machine is quickest in bf16: without AVX512-BF16 such a step takes thirty times as long. The first step, for which
nanochat compiles, is no part of the rate and is printed beside it.

A curve goes to OUT/nanochat_d4.jsonl and OUT/ours_d4.jsonl: both are scored on the same rows, packed by our loader, and at the
end also on rows that nanochat's loader packs and crops, whose bits per byte are lower. nanochat trains for `--steps`
steps (or for `--minutes` at its rate), ours for as many minutes; with `--our-minutes 8` for as many as that, which is a run with
a schedule of its own in OUT/ours_d4_8min.jsonl. Minutes are tokens over the tokens a second that were measured in turns (or given
as --rates) and are kept in OUT/rates_d4.json, so that other work on the machine while a curve runs does not count; `seconds` in
the files are those of the clock, without evaluation and, for nanochat, without compilation. A file that is there is not made
again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from nanochat_driver import ROWS_AT_ONCE, drive, prepare

from nutshell.data.loader import PretrainLoader
from nutshell.data.shards import open_shards
from nutshell.eval.bpb import bits_per_byte
from nutshell.model.flops import matrix_parameters
from nutshell.model.gpt import GPT
from nutshell.plan.plan import Hardware, Plan, make_plan
from nutshell.plan.recipe import Recipe
from nutshell.plan.shape import make_shape
from nutshell.report.provenance import processor
from nutshell.report.svg import Plot, Series, draw
from nutshell.runtime import Runtime, start_runtime
from nutshell.tokenizer import Tokenizer
from nutshell.train.optim import MuonAdamW, group_parameters
from nutshell.train.prefetch import MicroBatch
from nutshell.train.step import LossScaler, StepResult, train_step

CONTEXT = 512
THEIR_STEP = 16_384
OUR_STEP = 4_096
VALIDATION_TOKENS = 262_144
WARM_STEPS = 2


class Bench:
    """What all measurements share: data, tokenizer, the rows both are scored on, and nanochat's base folder."""

    def __init__(self, nanochat: Path, data: Path, tokenizer: Path | None, device_rows: int, folder: Path):
        if not (nanochat / "scripts" / "base_train.py").is_file():
            raise SystemExit(f"{nanochat} is not a checkout of nanochat: it has no scripts/base_train.py")
        self.nanochat, self.device_rows, self.base = nanochat.resolve(), device_rows, folder / "base"
        self.shards = open_shards(data)
        train = sorted(data.glob("train-*.parquet"))
        self.tok = Tokenizer.load(tokenizer) if tokenizer else Tokenizer.train(train, vocab_size=8192)
        self.runtime: Runtime = start_runtime(device="cpu")
        self.first_step: dict[str, float] = {}
        """Seconds of the newest first step of each that was timed, compilation included."""
        prepare(self.base, data, self.tok)
        self.validation = self.loader(ROWS_AT_ONCE, seed=0).val_batches(VALIDATION_TOKENS)
        self.rows, theirs = folder / "rows.npz", folder / "theirs.npy"
        drive("rows", self.nanochat, self.base, theirs, VALIDATION_TOKENS // CONTEXT // ROWS_AT_ONCE, CONTEXT)
        saved = np.load(theirs)  # (inputs and targets, N, T)
        self.their_validation = list(zip(*(torch.from_numpy(each).split(ROWS_AT_ONCE) for each in saved), strict=True))
        ours = np.stack([torch.cat(each).numpy() for each in zip(*self.validation, strict=True)])
        np.savez(self.rows, ours=ours, theirs=saved)

    def loader(self, rows: int, seed: int) -> PretrainLoader:
        return PretrainLoader(self.shards, self.tok.encode_batch, self.tok.bos_id, rows, CONTEXT + 1, seed=seed)

    def nanochat_run(self, depth: int, steps: int, out: Path, *, dtype: str, evaluate_at: list[int]) -> None:
        flags = [
            f"--depth={depth}", f"--num-iterations={steps}", f"--device-batch-size={self.device_rows}", "--device-type=cpu",
            "--head-dim=64", "--window-pattern=L", f"--max-seq-len={CONTEXT}", f"--total-batch-size={THEIR_STEP}",
        ]  # fmt: skip
        scored_at = ",".join(map(str, evaluate_at))
        drive("train", self.nanochat, self.base, out, self.rows, scored_at, *flags, dtype=dtype)

    def nanochat_rate(self, depth: int, dtype: str, steps: int) -> float:
        """Tokens a second, the median step."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "steps.jsonl"
            self.nanochat_run(depth, WARM_STEPS + steps, out, dtype=dtype, evaluate_at=[])
            seconds = [record["step_seconds"] for record in read(out)]
        self.first_step[f"nanochat {dtype}"] = seconds[0]
        return THEIR_STEP / statistics.median(seconds[WARM_STEPS:])

    def our_plan(self, depth: int, *, step_tokens: int = 0, tokens: float = 0.0) -> Plan:
        """The plan of this depth for a horizon of `tokens`, with the plan's own batch unless it is given."""
        recipe = Recipe(depth=depth, context=CONTEXT, tokens_per_step=step_tokens, device="cpu")
        if tokens:
            shape = make_shape(recipe, depth, self.tok.vocab_size)
            recipe = Recipe(**{**vars(recipe), "tokens_per_parameter": tokens / matrix_parameters(shape)})
        hardware = Hardware(dtype=self.runtime.dtype_name, threads=self.runtime.threads)
        return make_plan(recipe, hardware, vocab_size=self.tok.vocab_size, bos_id=self.tok.bos_id)

    def our_training(self, plan: Plan) -> tuple[GPT, Iterator[tuple[int, StepResult]]]:
        torch.manual_seed(plan.recipe.seed)
        model, pretrain = GPT(plan.model), plan.stages["pretrain"]
        model.set_precision(self.runtime.dtype, self.runtime.attention)
        groups = group_parameters(model, plan.optimizer, width=plan.model.width, tokens_per_step=pretrain.tokens_per_step)
        optimizer, loader = MuonAdamW(groups, self.runtime.dtype), self.loader(plan.micro_batch_size, plan.recipe.seed)

        def steps() -> Iterator[tuple[int, StepResult]]:
            with loader:
                for step in range(pretrain.steps):
                    fetched = [next(loader) for _ in range(plan.grad_accum_steps)]
                    batches = [MicroBatch(ids, targets, ids.numel()) for ids, targets in fetched]  # every token is learned
                    rates = plan.schedule.at(step, pretrain.steps, pretrain.lr_fraction)
                    yield step + 1, train_step(model, optimizer, batches, rates, self.runtime, LossScaler())

        return model, steps()

    def our_rate(self, depth: int, step_tokens: int, steps: int) -> float:
        _, training = self.our_training(self.our_plan(depth, step_tokens=step_tokens))
        seconds = [result.seconds for _, result in islice(training, WARM_STEPS + steps)]
        self.first_step[f"ours {step_tokens:,} a step"] = seconds[0]
        return step_tokens / statistics.median(seconds[WARM_STEPS:])

    def our_curve(self, plan: Plan, count: int, out: Path) -> None:
        model, training = self.our_training(plan)
        lengths, seconds, wanted = self.tok.token_byte_lengths(), 0.0, points(plan.stages["pretrain"].steps, count)
        with open(out.with_suffix(".part"), "w", encoding="utf-8") as file:
            for step, result in training:
                seconds += result.seconds
                if step in wanted:
                    bpb = bits_per_byte(model, self.validation, lengths)
                    record = {"step": step, "tokens": step * result.tokens, "seconds": seconds, "bpb": bpb}
                    if step == wanted[-1]:
                        record["their_bpb"] = bits_per_byte(model, self.their_validation, lengths)
                    print(f"ours {record}", flush=True)
                    file.write(json.dumps(record) + "\n")
                    file.flush()
        out.with_suffix(".part").rename(out)


def points(steps: int, count: int) -> list[int]:
    """The steps after which a curve is scored: half of them in its first third."""
    return sorted({max(1, round(steps * (share / (count + 2)) ** 2)) for share in range(3, count + 3)})


def read(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def speeds(bench: Bench, depth: int, rounds: int, steps: int, names: list[str]) -> dict[str, float]:
    """Median tokens a second of each, measured in turns; prints all and the ratios."""
    measure = {
        "nanochat float32": lambda: bench.nanochat_rate(depth, "float32", steps),
        "nanochat bfloat16": lambda: bench.nanochat_rate(depth, "bfloat16", steps),
        f"ours {THEIR_STEP:,} a step": lambda: bench.our_rate(depth, THEIR_STEP, steps),
        f"ours {OUR_STEP:,} a step": lambda: bench.our_rate(depth, OUR_STEP, steps * THEIR_STEP // OUR_STEP),
    }
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            found[name].append(measure[name]())
    medians = {name: statistics.median(each) for name, each in found.items()}
    print(f"{processor()}, {bench.runtime.threads} threads; ours in {bench.runtime.dtype_name}")
    print(f"depth {depth}, width {64 * depth}, tokens/s, median of {rounds} turns, and the first step:")
    for name, each in found.items():
        spread = f"({min(each):,.0f} to {max(each):,.0f})"
        print(f"  {name:<22} {medians[name]:8,.0f}   {spread}; first step {bench.first_step[name]:.1f} s")
    for ours in (name for name in names if name.startswith("ours")):
        for peer, target in (("nanochat float32", 2.0), ("nanochat bfloat16", 1.25)):
            if peer in found:
                turns = [a / b for a, b in zip(found[ours], found[peer], strict=True)]
                ratio = f"{medians[ours] / medians[peer]:.2f} ({min(turns):.2f} to {max(turns):.2f})"
                print(f"  {ours} / {peer}: {ratio}; target {target}")
    sys.stdout.flush()
    return medians


def curve(bench: Bench, depth: int, options: argparse.Namespace) -> None:
    """Both curves of one depth, and the table of what each has reached by when."""
    out, steps, dtype = options.curve, options.steps, bench.runtime.dtype_name
    theirs, known = out / f"nanochat_d{depth}.jsonl", out / f"rates_d{depth}.json"
    if options.rates:
        known.write_text(json.dumps(options.rates))
    elif not known.exists():
        names = [f"nanochat {dtype}", f"ours {OUR_STEP:,} a step"]
        known.write_text(json.dumps(list(speeds(bench, depth, options.rounds, options.timed_steps, names).values())))
    their_rate, our_rate = json.loads(known.read_text())
    if not theirs.exists():
        steps = steps or max(1, round(options.minutes * 60 * their_rate / THEIR_STEP))
        part = theirs.with_suffix(".part")
        bench.nanochat_run(depth, steps, part, dtype=dtype, evaluate_at=points(steps, options.points))
        part.rename(theirs)
    peer = scored(theirs)
    minutes = options.our_minutes or peer[-1]["tokens"] / their_rate / 60
    ours = out / (f"ours_d{depth}_{minutes:g}min.jsonl" if options.our_minutes else f"ours_d{depth}.jsonl")
    if not ours.exists():
        plan = bench.our_plan(depth, step_tokens=OUR_STEP, tokens=minutes * 60 * our_rate)
        bench.our_curve(plan, options.points, ours)
    mine = scored(ours)
    table(depth, mine, [r["tokens"] / our_rate / 60 for r in mine], peer, [r["tokens"] / their_rate / 60 for r in peer])


def scored(path: Path) -> list[dict[str, float]]:
    """The records of a curve that have a score, without that of the drawn weights."""
    return [record for record in read(path) if "bpb" in record and record["step"]]


def table(depth: int, mine: list[dict], my_minutes: list[float], peer: list[dict], their_minutes: list[float]) -> None:
    print(f"{processor()}\ndepth {depth}: bits per byte on the same {VALIDATION_TOKENS:,} tokens, ours interpolated")
    print("  minutes  nanochat    ours  difference")
    for record, at in zip(peer, their_minutes, strict=True):
        ours = float(np.interp(at, my_minutes, [each["bpb"] for each in mine], left=float("nan"), right=float("nan")))
        print(f"  {at:7.2f}  {record['bpb']:8.4f}  {ours:6.4f}  {ours - record['bpb']:+.4f}")
    for name, records in (("nanochat", peer), ("ours", mine)):
        if "their_bpb" in records[-1]:
            print(f"  {name} at its end in rows packed and cropped by nanochat's loader: {records[-1]['their_bpb']:.4f}")
    best = peer[-1]["bpb"]
    reached = [at for record, at in zip(mine, my_minutes, strict=True) if record["bpb"] <= best]
    when = f"after {reached[0]:.1f} minutes, {their_minutes[-1] / reached[0]:.1f}x as soon" if reached else "not reached"
    print(
        f"  nanochat's {best:.4f} after {their_minutes[-1]:.1f} minutes; ours ends at {mine[-1]['bpb']:.4f}, and has that {when}"
    )


def plot(out: Path, depths: list[int]) -> None:
    """Bits per byte against minutes, a file for each depth."""
    for depth in depths:
        their_rate, our_rate = json.loads((out / f"rates_d{depth}.json").read_text())
        curves = [(f"nanochat_d{depth}.jsonl", "nanochat", their_rate), (f"ours_d{depth}.jsonl", "nutshell", our_rate)]
        curves += [(path.name, f"nutshell, {path.stem.split('_')[-1]}", our_rate) for path in out.glob(f"ours_d{depth}_*.jsonl")]
        figure = Plot(f"{depth} layers, width {64 * depth}", "minutes of training", "validation bits per byte")
        for colour, (name, label, rate) in enumerate(curves):
            records = scored(out / name)
            minutes = [r["tokens"] / rate / 60 for r in records]
            figure.series.append(Series(label, minutes, [r["bpb"] for r in records], colour, dots=True))
        (out / f"curves_d{depth}.svg").write_text(draw(figure, alone=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanochat", type=Path, required=True, help="a checkout of nanochat")
    parser.add_argument("--data", type=Path, required=True, help="folder of train-*.parquet and val-*.parquet")
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer; default: trained on the shards")
    parser.add_argument("--depths", type=int, nargs="+", default=[4])
    parser.add_argument("--device-rows", type=int, default=32, help="rows nanochat takes at once")
    parser.add_argument("--rounds", type=int, default=3, help="turns of the measurement of speed")
    parser.add_argument("--timed-steps", type=int, default=6, help="steps of each turn that count")
    parser.add_argument("--curve", type=Path, metavar="OUT", help="folder for the curves; without it only speed is measured")
    parser.add_argument("--steps", type=int, default=0, help="nanochat's horizon (388 is 6.4 M tokens)")
    parser.add_argument("--minutes", type=float, default=10.0, help="nanochat's horizon where --steps is not given")
    parser.add_argument("--points", type=int, default=14, help="evaluations of a curve")
    parser.add_argument("--our-minutes", type=float, default=0.0, help="our horizon; default: as long as nanochat's")
    parser.add_argument("--rates", type=float, nargs=2, default=[], metavar=("NANOCHAT", "OURS"), help="tokens/s known already")
    parser.add_argument("--plot", action="store_true", help="draw OUT/curves_dN.svg")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.nanochat, options.data, options.tokenizer, options.device_rows, Path(folder))
        for depth in options.depths:
            if options.curve:
                options.curve.mkdir(parents=True, exist_ok=True)
                curve(bench, depth, options)
            else:
                peers = dict.fromkeys(("nanochat float32", f"nanochat {bench.runtime.dtype_name}"))
                names = [*peers, f"ours {THEIR_STEP:,} a step", f"ours {OUR_STEP:,} a step"]
                speeds(bench, depth, options.rounds, options.timed_steps, names)
    if options.curve and options.plot:
        plot(options.curve, options.depths)


if __name__ == "__main__":
    main()
