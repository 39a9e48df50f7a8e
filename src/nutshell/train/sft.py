"""Midtraining and supervised fine-tuning: conversations, loss on what the assistant says."""

from __future__ import annotations

from nutshell.data import primer
from nutshell.data.conversations import read_conversations
from nutshell.data.loader import ConversationLoader
from nutshell.plan.recipe import PRIMER
from nutshell.run.folder import Run
from nutshell.tokenizer.chat import parse_messages, render, split_turns
from nutshell.train.prefetch import ToDevice
from nutshell.train.scoring import evaluate_stage
from nutshell.train.stage import open_stage


def conversations_for(run: Run, stage: str) -> list[dict]:
    """The user's conversations, long ones in parts of whole turns, and the primer's share of them; or the primer's alone."""
    recipe = run.plan.recipe
    plan = run.plan.stages[stage]
    seed = recipe.seed + {"midtrain": 1, "sft": 2}[stage]
    wanted = plan.conversations
    if recipe.sft == PRIMER:
        return list(primer.conversations(seed, wanted))
    own = [
        {"messages": part}
        for conversation in read_conversations(run.conversations, check=parse_messages)
        for part in split_turns(conversation["messages"], run.tok, run.plan.model.context + 1)
    ]
    share = getattr(recipe.stages, stage).primer_share
    count = min(wanted, int(len(own) * share / (1 - share)) if share < 1 else wanted)
    return own + list(primer.conversations(seed, count))


def sft(run: Run, name: str) -> None:
    """Run stage `name` ("midtrain" or "sft") to its last step, or go on where its newest checkpoint stands."""
    if run.finished(name):
        return
    plan, runtime = run.plan, run.runtime
    stage = open_stage(run, name)
    loader = ConversationLoader(
        conversations_for(run, name), lambda c: render(c["messages"], run.tok), run.tok.bos_id, plan.micro_batch_size,
        plan.model.context + 1, seed=plan.recipe.seed, rank=runtime.rank, world_size=runtime.world_size,
        prefetched_batches=max(4, plan.grad_accum_steps),
        prepare=ToDevice(runtime.device, run.tok.bos_id, stage.model.attention_kernel),
    )  # fmt: skip
    if stage.loader_state:
        loader.load_state_dict(stage.loader_state)

    lost = loader.losses() if plan.recipe.sft != PRIMER else {}
    if lost:
        cropped, left_out = lost["cropped_conversations"], lost["left_out_conversations"]
        run.log.note(
            f"{name}: of {len(loader.conversations)} conversations {cropped} are longer than the context of {plan.model.context} "
            f"tokens and lose their end ({lost['cropped_tokens']} tokens); {left_out} are left out, since no answer "
            "remains of them. A longer --context keeps more."
        )

    with loader:
        while stage.step < stage.steps:
            batches = [next(loader) for _ in range(plan.grad_accum_steps)]
            result = stage.learn(batches)
            stage.record(result, loader.sources, **lost)
            stage.save_if_due(result, loader)
    evaluate_stage(run, stage)
