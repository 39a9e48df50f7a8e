"""A stage's model and optimizer: loaded or built, parallelized, compiled, restored. `open_stage` has the order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import nn

from nutshell import checkpoint
from nutshell.files import STAGES
from nutshell.model.build import build_model
from nutshell.model.decoder import Decoder
from nutshell.plan.recipe import ON_ANSWERS
from nutshell.run.checkpoints import open_newest, prune, quarantine, truncate_after
from nutshell.run.folder import Run
from nutshell.runtime import Runtime
from nutshell.tokenizer import Tokenizer
from nutshell.train.optim import MuonAdamW, group_parameters
from nutshell.train.stage import Stage
from nutshell.train.step import LossScaler
from nutshell.train.zero import Zero


def open_stage(run: Run, name: str) -> Stage:
    """Go on from the stage's newest checkpoint, or start it from the stage before it (pretrain: from drawn weights)."""
    model, training, tensors, damaged = load_or_build(run, name)
    runtime = replace(run.runtime, compiled=False, fp8=False) if name in ON_ANSWERS else run.runtime
    model.set_precision(runtime.dtype, runtime.attention, fp8=runtime.fp8).train()
    zero = parallelize(model, runtime, run.shards_weights)
    step_model = compile_model(model, runtime) if not run.shards_weights else model
    optimizer = make_optimizer(model, run, name, zero)
    if tensors is not None:
        optimizer.load_state_dict(tensors, training["optimizer_steps"])
    run.runtime.barrier()  # every rank has opened the same checkpoint before rank 0 changes the folder
    if run.runtime.is_main:
        quarantine(damaged)
        truncate_after(run.stage_folder(name), training["step"])
        prune(run.stage_folder(name), run.plan.recipe.keep_checkpoints)
        run.log.truncate_after(name, training["step"])
        run.log.console.begin(name, run.plan.stages[name].steps, training["step"])
        (run.folder / "preempted").unlink(missing_ok=True)
    scaler = LossScaler.for_dtype(run.runtime.dtype, training.get("loss_scale"))
    return Stage(
        run=run,
        name=name,
        model=model,
        step_model=step_model,
        optimizer=optimizer,
        scaler=scaler,
        step=training["step"],
        seconds=training["seconds"],
        loader_state=training["loader"],
    )


def load_or_build(run: Run, name: str) -> tuple[Decoder, dict, dict | None, list[Path]]:
    """Model, training state, optimizer state (None at the start of a stage), and the damaged checkpoints passed over."""
    plan = run.plan
    device = torch.device("cpu") if run.shards_weights else run.runtime.device  # sharding moves the parts
    go_back = plan.recipe.damaged_checkpoint == "previous"
    newest, damaged = open_newest(run.stage_folder(name), device, go_back=go_back, note=run.log.note)
    training: dict = {"step": 0, "seconds": 0.0, "loader": None, "optimizer_steps": 0}
    tensors = None
    if newest is not None:
        model, tok, training, tensors = newest
    else:
        model, tok = starting_model(run, name, device)
    if tok.fingerprint != run.tok.fingerprint:
        raise ValueError(
            f"{run.folder}/tokenizer is not the one that the checkpoints in {run.folder} were trained with. "
            "Put that one back (every checkpoint holds a copy), or give another --out to start anew."
        )
    if model.config != plan.model:
        raise ValueError(f"the checkpoint in {run.folder} has another shape than its plan.json. Give another --out.")
    return model, training, tensors, damaged


def starting_model(run: Run, name: str, device: torch.device | None = None) -> tuple[Decoder, Tokenizer]:
    """The model that a stage begins with: the last one of the stage before it, that of --init-from, or drawn weights."""
    recipe, device = run.plan.recipe, device or run.runtime.device
    before = STAGES[: STAGES.index(name)]
    if recipe.init_from and not any(checkpoint.checkpoints(run.stage_folder(stage)) for stage in before):
        return checkpoint.load_model(checkpoint.find(recipe.init_from), device)[:2]
    if name != "pretrain":
        return checkpoint.load_model(last_of_previous(run, name), device)[:2]
    torch.manual_seed(recipe.seed)
    return build_model(run.plan.model).to(device), run.tok


def last_of_previous(run: Run, name: str) -> Path:
    """The last checkpoint of the stage before `name`; stages without steps are passed over."""
    previous = [stage for stage in STAGES[: STAGES.index(name)] if run.plan.stages[stage].steps][-1]
    saved, steps = checkpoint.checkpoints(run.stage_folder(previous)), run.plan.stages[previous].steps
    done, source = saved[-1] if saved else (0, Path())
    if done < steps:
        raise ValueError(
            f"{name} starts from the end of {previous}, which stands at step {done} of {steps} in {run.folder}. "
            f"Run: nutshell {previous} first."
        )
    return source


def parallelize(model: Decoder, runtime: Runtime, sharded: bool) -> Zero:
    """Who owns which parameters: whole weights on every rank and sharded optimizer state, or sharded weights too."""
    ranks = {"rank": runtime.rank, "world_size": runtime.world_size}
    if not sharded:
        return Zero(**ranks)
    from nutshell.train.fsdp import Fsdp, shard_weights

    shard_weights(model, runtime.device, compiled=runtime.compiled)
    return Fsdp(**ranks)


def compile_model(model: Decoder, runtime: Runtime, backend: str = "inductor") -> nn.Module:
    """The model as training calls it. Shapes never change within a stage, so one graph is enough: another is an error."""
    if not runtime.compiled:
        if runtime.device.type == "cuda":  # attention and loss are compiled by themselves, for some shapes and not for all
            torch._dynamo.config.fail_on_recompile_limit_hit = False
        return model
    torch._dynamo.reset()  # graphs of timed or earlier models would count towards the limit
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return cast(nn.Module, torch.compile(model, dynamic=False, backend=backend))


def make_optimizer(model: Decoder, run: Run, name: str, zero: Zero) -> MuonAdamW:
    """Groups at the plan's rates. Weights decay in pretraining alone; DPO and RL leave out the groups that the table says."""
    plan, step_tokens = run.plan, run.plan.stages[name].tokens_per_step
    groups = group_parameters(model, plan.optimizer, width=plan.model.width, tokens_per_step=step_tokens)
    for group in groups:
        if name != "pretrain":
            group.weight_decay = 0.0
        if name in ON_ANSWERS and not group.row.trained_in_rl:
            group.lr = 0.0
    return MuonAdamW(groups, run.runtime.dtype, zero, muon_beta2=plan.optimizer.muon_beta2)
