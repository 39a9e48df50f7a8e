"""Run by 4 processes: `shard_ranks.py FOLDER 2,4,1` proves on 2, 4 and 1 ranks that sharding changes only memory.

Every check compares with an unsharded computation of the same step on the same data. An optimizer state found in FOLDER, of
another number of ranks, is reopened; this number's is left there. Rank 0 prints what it measured as JSON.
A third argument, `more`, checks a compiled model's backward and weights divided by FSDP2 instead, which take longer.
"""

import copy
import json
import math
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from nutshell.eval.bpb import bits_per_byte
from nutshell.model.config import ModelConfig
from nutshell.model.gpt import GPT
from nutshell.plan.recipe import OptimizerConfig
from nutshell.plan.schedule import Schedule
from nutshell.runtime import Runtime
from nutshell.train.optim import MuonAdamW, group_parameters
from nutshell.train.prefetch import MicroBatch
from nutshell.train.step import LossScaler, StepResult, next_token_loss, train_step
from nutshell.train.zero import Zero

VOCAB = 67  # 67 rows divide by neither 2 nor 4 (nanochat issue 320)
CONFIG = ModelConfig(vocab_size=VOCAB, depth=5, width=32, heads=2, kv_heads=2, head_dim=16, context=16)
RATES = {"lr": 1.0, "momentum": 0.9, "decay": 1.0}
RANK, WORLD = int(os.environ["RANK"]), 1  # the second changes as the checks go through the numbers of ranks


def make(*, sharded: bool, weights: bool = False, dtype: torch.dtype = torch.float32) -> tuple[GPT, MuonAdamW]:
    torch.manual_seed(0)
    model = GPT(CONFIG).set_precision(dtype)
    with torch.no_grad():  # zero-initialised projections would have no gradient to speak of
        for p in model.parameters():
            p.add_(torch.randn(p.shape) * 0.02)
    if weights:
        from nutshell.train.fsdp import Fsdp, shard_weights

        shard_weights(model, torch.device("cpu"))
    groups = group_parameters(model, OptimizerConfig(), width=32, tokens_per_step=4096)
    if weights:
        return model, MuonAdamW(groups, zero=Fsdp(rank=RANK, world_size=WORLD))
    return model, MuonAdamW(groups, zero=Zero(rank=RANK, world_size=WORLD) if sharded else None)


def gradients(model: GPT, step: int, rank: int) -> dict[str, torch.Tensor | None]:
    """Random ones; in step 2 the backout has none."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    found = {name: torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}
    if step == 2:
        found["backout"] = None
    return found


def close(ours: GPT, theirs: GPT, tolerance: float, what: str) -> None:
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        difference = float((p - q).detach().abs().max())
        assert difference <= tolerance, f"{what}: {name} differs by {difference} on {WORLD} ranks"


def same_bits_everywhere(model: GPT) -> None:
    mine = torch.cat([p.detach().flatten() for p in model.parameters()])
    others = [torch.empty_like(mine) for _ in range(WORLD)]
    dist.all_gather(others, mine)
    assert all(torch.equal(mine, other) for other in others), "the ranks differ"


def check_steps(folder: Path) -> dict:
    """Sharded equals unsharded; its state is 1/ranks of it; what is saved opens on another number of ranks."""
    ours, sharded = make(sharded=True)
    theirs, whole = make(sharded=False)
    for step in range(4):
        per_rank = [gradients(ours, step, rank) for rank in range(WORLD)]
        for name, p in ours.named_parameters():
            p.grad = None if per_rank[RANK][name] is None else per_rank[RANK][name].clone()
        for name, p in theirs.named_parameters():
            found = [g[name] for g in per_rank if g[name] is not None]
            p.grad = torch.stack(found).sum(0) if found else None
        square = sharded.reduce().square()
        dist.all_reduce(square)
        norms = float(square.sqrt()), float(whole.reduce())
        assert math.isclose(*norms, rel_tol=1e-5), norms
        before = ours.backout.detach().clone()
        sharded.step(**RATES)
        whole.step(**RATES)
        assert torch.equal(before, ours.backout) == (step == 2)
        close(ours, theirs, 0 if WORLD == 1 else 1e-6, f"step {step}")
        same_bits_everywhere(ours)
    state, expected = sharded.state_dict(), whole.state_dict()
    if RANK == 0:
        assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in expected.items()}
        assert all(torch.allclose(state[k], expected[k], atol=1e-6) for k in state)
    else:
        assert state == {}
    for file in sorted(folder.glob("*.safetensors")):
        saved = load_file(file)
        _, reopened = make(sharded=True)
        reopened.load_state_dict(saved, 4)
        again = reopened.state_dict()
        assert RANK or (again.keys() == saved.keys() and all(torch.equal(again[k], saved[k]) for k in saved))
    dist.barrier()
    if RANK == 0:
        save_file({key: value.contiguous() for key, value in state.items()}, folder / f"ranks-{WORLD}.safetensors")
    mine = torch.tensor([sum(t.numel() * 4 for t in sharded.state.values())])
    everyones = [torch.zeros_like(mine) for _ in range(WORLD)]
    dist.all_gather(everyones, mine)
    return {"state_bytes": [int(b) for b in everyones], "whole_bytes": sum(t.numel() * 4 for t in whole.state.values())}


def check_backward(compiled: bool) -> list[str]:
    """Gradients that were reduced while backward ran equal those that are summed afterwards; where the messages began."""
    ours, optimizer = make(sharded=True)
    plain = copy.deepcopy(ours)
    model = torch.compile(ours, backend="aot_eager") if compiled else ours
    events: list[str] = []
    ours.embedding.weight.register_post_accumulate_grad_hook(lambda _: events.append("last gradient"))
    send = dist.reduce_scatter_tensor

    def noted(*args, **more):
        events.append("sent")
        return send(*args, **more)

    dist.reduce_scatter_tensor = noted
    for step in range(3):
        events.clear()
        rows = torch.randint(1, VOCAB, (4, 17), generator=torch.Generator().manual_seed(10 * step + RANK))
        model(rows[:2, :-1], rows[:2, 1:]).backward()
        assert "sent" not in events, "only the last micro-batch of a step may send"
        events.clear()
        optimizer.reduce_in_backward()
        model(rows[2:, :-1], rows[2:, 1:]).backward()
        events.append("backward ends")
        optimizer.reduce()
        for micro in (rows[:2], rows[2:]):
            plain(micro[:, :-1], micro[:, 1:]).backward()
        for (name, p), q in zip(ours.named_parameters(), plain.parameters(), strict=True):
            assert q.grad is not None
            dist.all_reduce(q.grad)
            for part in optimizer.zero.shards:
                if part.name == name:
                    assert torch.allclose(part.gradient, q.grad[part.rows], rtol=1e-4, atol=1e-6), (name, step)
            p.grad = q.grad = None
    dist.reduce_scatter_tensor = send
    return events


def train(model: GPT, optimizer: MuonAdamW, rank: int, world: int, size: int, accumulation: int) -> list[StepResult]:
    """Two steps on rows with different numbers of targets."""
    rows = torch.randint(1, VOCAB, (size * accumulation * world, 17), generator=torch.Generator().manual_seed(5))
    targets = rows[:, 1:].clone()
    for i in range(len(rows)):
        targets[i, : (7 * i) % 15] = -1
    places = [(i * world + rank) * size for i in range(accumulation)]
    batches = [
        MicroBatch(rows[p : p + size, :-1], targets[p : p + size], int((targets[p : p + size] >= 0).sum())) for p in places
    ]
    runtime = Runtime(device=torch.device("cpu"), dtype=torch.float32, rank=rank, world_size=world)
    schedule = Schedule()
    return [train_step(model, optimizer, batches, schedule.at(step, 2, 0.1), runtime, LossScaler()) for step in range(2)]


def check_uneven_targets(*, weights: bool) -> None:
    """Micro-batches with different numbers of targets on all ranks are as one process that sees all rows at once, and one mean;
    so are weights divided by FSDP2, and what is saved of them."""
    theirs, whole = make(sharded=False)
    expected = train(theirs, whole, 0, 1, 4 * WORLD, 1)
    ours, sharded = make(sharded=True, weights=weights)
    for a, b in zip(train(ours, sharded, RANK, WORLD, 2, 2), expected, strict=True):
        assert math.isclose(a.loss, b.loss, rel_tol=1e-5), (a, b)
        assert math.isclose(a.grad_norm, b.grad_norm, rel_tol=1e-4), (a, b)
        assert a.tokens == b.tokens
    if weights:
        from nutshell.train.fsdp import whole_model

        ours, held = whole_model(ours, everywhere=True), sum(p.to_local().numel() for p in ours.parameters())
        assert held < 1.2 / WORLD * sum(p.numel() for p in ours.parameters())
    # Adam blows up the last digits of tiny gradients: a tenth of a step's size is far above that, and far below an error.
    close(ours, theirs, 2e-3, f"uneven targets, weights divided: {weights}")
    same_bits_everywhere(ours)
    state, reference = sharded.state_dict(), whole.state_dict()
    assert RANK or state.keys() == reference.keys()
    for key, value in state.items():
        assert torch.allclose(value, reference[key], rtol=1e-2, atol=1e-4), key
    _, reopened = make(sharded=True, weights=weights)
    reopened.load_state_dict(reference, 2)
    for key, value in reopened.state_dict().items():
        assert torch.equal(value, reference[key]), key


def check_divided_weights_in_bf16() -> None:
    """Blocks whose weights are gathered in bf16 compute and learn what they do where each rank holds them in fp32 and casts."""
    theirs, divided_state = make(sharded=True, dtype=torch.bfloat16)
    ours, divided_weights = make(sharded=True, weights=True, dtype=torch.bfloat16)
    rows = torch.randint(1, VOCAB, (2, 17), generator=torch.Generator().manual_seed(9))
    before = [bits_per_byte(model, [(rows[:, :-1], rows[:, 1:])], torch.ones(VOCAB)) for model in (ours, theirs)]
    assert math.isclose(*before, rel_tol=1e-4), before  # F11: validating comes before the first training step
    expected = train(theirs, divided_state, RANK, WORLD, 2, 2)
    for a, b in zip(train(ours, divided_weights, RANK, WORLD, 2, 2), expected, strict=True):
        assert math.isclose(a.loss, b.loss, rel_tol=1e-5), (a, b)
        assert math.isclose(a.grad_norm, b.grad_norm, rel_tol=1e-4), (a, b)
    from nutshell.train.fsdp import whole_model

    close(whole_model(ours, everywhere=True), theirs, 1e-4, "weights divided, bf16")


def check_bad_and_empty_ranks() -> None:
    """NaN on one rank: all skip alike. No target on one rank: the others teach it. None on any: not one bit moves."""
    model, optimizer = make(sharded=True)
    runtime = Runtime(device=torch.device("cpu"), dtype=torch.float32, rank=RANK, world_size=WORLD)
    rows = torch.randint(1, VOCAB, (2, 17), generator=torch.Generator().manual_seed(RANK))
    nothing = torch.full_like(rows[:, 1:], -1)
    last = RANK == WORLD - 1

    def step(targets: torch.Tensor, factor: float = 1.0) -> tuple[StepResult, bool]:
        before = [t.detach().clone() for t in (*model.parameters(), *optimizer.state.values())]
        batch = MicroBatch(rows[:, :-1], targets, int((targets >= 0).sum()))
        loss_of = lambda model, batch: next_token_loss(model, batch) * factor  # noqa: E731
        result = train_step(model, optimizer, [batch], Schedule().at(0, 9), runtime, LossScaler(), loss_of=loss_of)
        same_bits_everywhere(model)
        after = (*model.parameters(), *optimizer.state.values())
        return result, not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    learned = rows[:, 1:]
    for targets, factor, finite, updated in (
        (learned, 1.0, True, True),
        (learned, math.nan if last else 1.0, False, False),
        (nothing if last else learned, 1.0, True, WORLD > 1),
        (nothing, 1.0, True, False),
        (learned, 1.0, True, True),
    ):
        steps = optimizer.steps
        result, moved = step(targets, factor)
        assert (result.finite, result.updated, optimizer.steps - steps) == (finite, updated, updated), (result, WORLD)
        assert moved == updated, (result, WORLD)


def main(folder: Path, sizes: str, only: str = "") -> None:
    global WORLD
    torch.set_num_threads(1)
    results = {}
    for WORLD in map(int, sizes.split(",")):
        if RANK >= WORLD:
            continue
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting-{WORLD}", rank=RANK, world_size=WORLD)
        results[WORLD] = {"events": check_backward(compiled=bool(only))} if WORLD == 2 or not only else {}
        if not only:
            results[WORLD] |= check_steps(folder)
        check_uneven_targets(weights=bool(only))
        if not only:
            check_bad_and_empty_ranks()
        if only:
            check_divided_weights_in_bf16()
        dist.barrier()  # nobody leaves while another still sends
        dist.destroy_process_group()
    if RANK == 0:
        print(json.dumps(results))


main(Path(sys.argv[1]), *sys.argv[2:])
