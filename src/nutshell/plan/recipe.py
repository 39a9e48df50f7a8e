"""A recipe is data: everything a user may set before a run. The plan turns it into numbers of steps.

Nothing here needs torch, so that `nutshell VERB --help` answers at once.
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass, field
from typing import Literal

from nutshell.config import ABOVE_ZERO, check_ranges
from nutshell.model.config import ARCHITECTURES
from nutshell.plan.hardware import parse_machine
from nutshell.plan.schedule import Schedule

PRIMER = "primer"
ON_ANSWERS = ("dpo", "rl")
"""Stages that learn from whole answers: rows of any length, which would be compiled again and again, and a faint gradient."""
PRIMER_TASKS = ("primer-facts", "primer-sums", "primer-letters", "primer-vowels")
CHOICES = {
    "architecture": ARCHITECTURES,
    "shard": ("state", "weights"),
    "damaged_checkpoint": ("stop", "previous"),
    "damaged_shards": ("stop", "skip"),
}
"""What these settings of a recipe may be."""
RANGES = {
    "seed": (0, math.inf), "primer_characters": (10_000, math.inf), "primer_conversations": (1, math.inf),
    "tokens_per_parameter": (ABOVE_ZERO, 10**6), "keep_checkpoints": (1, math.inf), "eval_items": (1, math.inf),
    "save_every_seconds": (0, math.inf), "usd_per_hour": (0, math.inf), "mfu": (0, 1), "held_out": (0, 0.5),
}  # fmt: skip
"""Lowest and highest values."""
RANGES_OR_ZERO = {
    "depth": (1, 256), "width": (1, 65536), "heads": (1, 1024), "kv_heads": (1, 1024), "head_dim": (1, 1024),
    "mlp_width": (1, 1 << 20),
    "context": (16, 1 << 20),  # a question and the beginning of an answer
    "vocab_size": (256 + 9, math.inf),  # bytes and special tokens
    "tokens_per_step": (1, math.inf), "micro_batch_size": (1, 4096), "validations": (1, math.inf),
    "validation_tokens": (1, math.inf),
}  # fmt: skip
"""The same for settings that the plan decides where they are 0."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Learning rates at width 768 and 2^19 tokens a step; plan/groups.py scales them."""

    matrix_lr: float = 0.02
    """Muon, all block matrices and gates."""
    head_lr: float = 0.008
    """AdamW, the output head."""
    embedding_lr: float = 0.3
    """AdamW, the token embedding."""
    value_embedding_lr: float = 0.15
    """AdamW, the value embeddings."""
    residual_lr: float = 0.005
    """AdamW, the residual scale of each layer (r)."""
    x0_lr: float = 0.5
    """AdamW, how much of the embedding each layer adds (a)."""
    smear_lr: float = 0.2
    """AdamW, smear and backout."""
    norm_lr: float = 0.1
    """AdamW, the norm weights of portable."""
    weight_decay: float = 0.28
    """Muon's cautious decay at 2^19 tokens a step; the plan scales it too."""
    muon_beta2: float = 0.9
    """Decay of NorMuon's second moment; 0 leaves that normalisation out."""
    clip_norm: float = 0.0
    """Gradients of a larger Euclidean norm are scaled down to it; 0 clips nothing."""

    def __post_init__(self) -> None:
        check_ranges(self, dict.fromkeys(vars(self), (0, 10**6)))


@dataclass(frozen=True, kw_only=True)
class MixturePart:
    """One part of what a stage learns from: data or a task, with a weight or epochs."""

    data: str = ""
    """Files or a folder: text for pretraining, conversations for the others; or `primer`."""
    task: str = ""
    """A task that teaches, in midtraining and fine-tuning: gsm8k, mmlu, arc-easy, arc-challenge, spelling, my_task.py:task."""
    weight: float = 0.0
    """Its share of the stage's tokens, relative to those of the other parts (default 1)."""
    epochs: float = 0.0
    """In place of a weight: how often the stage reads it."""
    rows: int = 0
    """Take no more than its first rows; of the primer and spelling write so many."""

    def __post_init__(self) -> None:
        if bool(self.data) == bool(self.task):
            raise ValueError(f"a part of a mixture has data {self.data!r} and task {self.task!r}; accepted: one of the two.")
        if self.weight and self.epochs:
            raise ValueError(f"{self.key} has weight {self.weight:g} and epochs {self.epochs:g}; accepted: one of the two.")
        check_ranges(self, {"weight": (0, 10**9), "epochs": (0, 10**6), "rows": (0, math.inf)})

    @property
    def key(self) -> str:
        """Where it comes from."""
        return self.data or self.task

    @property
    def name(self) -> str:
        """For people: the file's name without its suffixes, or the task."""
        return re.sub(r"\.(jsonl?|ndjson|parquet|[ct]sv|txt|md|gz|zst|bz2)\b.*", "", re.split(r"[/\\]", self.key.rstrip("/"))[-1])


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One training stage."""

    share: float = 0.0
    """Share of the budget's training time this stage gets."""
    steps: int = 0
    """Optimizer steps; 0 lets the plan decide."""
    epochs: float = 3.0
    """Read the conversations at most so often (midtrain and sft), the pairs just so often (dpo); steps that are named win."""
    lr_fraction: float = 1.0
    """Peak learning rates as a share of pretraining's."""
    primer_share: float = 0.0
    """Share of primer conversations where --sft names a file (midtrain and sft)."""
    mixture: tuple[MixturePart, ...] = ()
    """In place of --data or --sft, several parts: tables [[stages.NAME.mixture]] in a recipe's file."""

    def __post_init__(self) -> None:
        if len({bool(part.epochs) for part in self.mixture}) > 1:
            raise ValueError("a mixture has parts with epochs and parts with weights; accepted: the same for all of its parts.")
        if len({part.name for part in self.mixture}) < len(self.mixture):
            raise ValueError("two parts of a mixture have the same name; give each file once, and files of other names.")
        check_ranges(self, {"share": (0, 1), "steps": (0, math.inf), "epochs": (ABOVE_ZERO, 10**6), "lr_fraction": (0, 10**6)})
        check_ranges(self, {"primer_share": (0, 1)})


@dataclass(frozen=True, kw_only=True)
class DPOConfig(StageConfig):
    """Direct preference optimization, where there are pairs of answers."""

    pairs: str = ""
    """Preferences: a file or folder of rows with prompt, chosen and rejected. Empty leaves the stage out."""
    beta: float = 0.1
    """How strongly the model is held to the one before: a smaller beta goes farther."""
    batch: int = 16
    """Pairs a step."""
    held_out: float = 0.1
    """Share of the pairs, at most 256, that is only scored."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mixture:
            raise ValueError("dpo learns from pairs; a mixture is for pretrain, midtrain and sft.")
        check_ranges(self, {"beta": (ABOVE_ZERO, 10**6), "batch": (1, math.inf), "held_out": (0, 0.9)})
        if self.steps and not self.pairs:
            raise ValueError(f"steps is {self.steps}, but no pairs are named to learn from. Give pairs (--pairs FILE).")

    def held_out_of(self, pairs: int) -> int:
        """How many of so many pairs are held out."""
        return min(256, int(self.held_out * pairs))

    def steps_for(self, pairs: int) -> int:
        """Steps that read so many pairs `epochs` times, those held out aside."""
        learned = pairs - self.held_out_of(pairs)
        return self.steps or (math.ceil(self.epochs * learned / min(self.batch, learned)) if learned else 0)


@dataclass(frozen=True, kw_only=True)
class RLConfig(StageConfig):
    """Reinforcement learning by GRPO (train/rl.py): on-policy, with rewards that can be checked."""

    tasks: tuple[str, ...] = ()
    """What is practised (--tasks, --prompts): gsm8k, arc-easy ..., a .jsonl file, a function as my_task.py:task (default: the
    primer's sums, letters and vowels)."""
    reward: str = ""
    """A function that grades (item, completion) in place of the tasks' graders, as rewards.py:grade (--reward)."""
    reward_seconds: float = 10.0
    """An answer whose grade takes longer is left out."""
    prompts: int = 16
    """Problems a step."""
    samples: int = 8
    """Answers drawn for each problem."""
    max_tokens: int = 96
    """Longest answer."""
    temperature: float = 1.0
    draws: int = 1
    """Dynamic sampling (arXiv 2503.14476): draw problems up to so often, until enough have answers of different reward."""
    updates: int = 1
    """Updates by the answers of one step, each by a part of them. Above 1 the probability ratio is clipped."""
    clip_low: float = 0.2
    """The ratio counts down to 1 - clip_low,"""
    clip_high: float = 0.28
    """and up to 1 + clip_high: more room upwards keeps rare tokens alive (clip-higher, arXiv 2503.14476)."""
    mean_over: Literal["tokens", "answers", "constant"] = "tokens"
    """What the loss is a mean over: all tokens of the step, the tokens of each answer and then the answers (GRPO's first form,
    which favours short right and long wrong answers), or answers of max_tokens each (no such bias; arXiv 2503.20783)."""
    kl: float = 0.0
    """Weight of the KL divergence to the model before RL, which is kept in memory where this is above 0."""
    validations: int = 3
    """pass@1 and pass@k on held-out problems so often: before, during, after; 0 for none."""
    held_out: int = 32
    """Problems that these are of, never practised; of items of a file at most a fifth."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mixture:
            raise ValueError("rl writes its own problems; a mixture is for pretrain, midtrain and sft.")
        lowest = {"prompts": 1, "samples": 2, "max_tokens": 1, "draws": 1, "updates": 1, "validations": 0, "held_out": 0}
        lowest |= {"clip_high": 0, "kl": 0}
        check_ranges(self, {name: (low, math.inf) for name, low in lowest.items()} | {"clip_low": (0, 1)})
        check_ranges(self, {"temperature": (ABOVE_ZERO, 10**6), "reward_seconds": (ABOVE_ZERO, 10**6)})
        if self.mean_over not in ("tokens", "answers", "constant"):
            raise ValueError(f"mean_over is {self.mean_over!r}; accepted: tokens, answers, constant.")

    @property
    def on_primer(self) -> bool:
        """Whether problems of the primer are practised."""
        return not self.tasks or any(name.startswith("primer") for name in self.tasks)


@dataclass(frozen=True, kw_only=True)
class Stages:
    pretrain: StageConfig = field(default_factory=lambda: StageConfig(share=0.45))
    midtrain: StageConfig = field(default_factory=lambda: StageConfig(share=0.25, lr_fraction=0.7, primer_share=0.5))
    sft: StageConfig = field(default_factory=lambda: StageConfig(share=0.20, lr_fraction=0.5, primer_share=0.2))
    dpo: DPOConfig = field(default_factory=lambda: DPOConfig(lr_fraction=0.1))
    rl: RLConfig = field(default_factory=lambda: RLConfig(share=0.10, lr_fraction=0.1))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a run. Zero or empty means: the plan decides."""

    out: str = "runs/default"
    """Run folder; going on in it continues the run."""
    data: str = PRIMER
    """Text for pretraining: a .txt, .jsonl, .parquet or .md file, a folder of them, or `primer`, the embedded schoolbook."""
    sft: str = PRIMER
    """Conversations for fine-tuning: a file or folder in any format of docs/data.md, or `primer`."""
    skip_bad: bool = False
    """Leave out rows of conversations that are broken, with their number in log and report, in place of stopping."""
    held_out: float = 0.02
    """Share of your own conversations that is not learned but validates midtraining and fine-tuning, chosen by a hash."""
    identity: str = ""
    """Who the model says it is where it learns from the primer, such as name=Acorn,maker="the physics class"."""
    init_from: str = ""
    """Begin with the weights of this run or model folder in place of drawn ones; its shape and tokenizer are taken too."""
    budget: str = ""
    """For everything: 90s, 8min, 2h, or 100usd at the machine's price. The plan then fits model and horizon to the machine."""
    depth: int = 0
    """The one dial: transformer blocks. Width, heads, batch, rates and horizon follow."""
    params: str = ""
    """In place of a depth: the depth whose model is nearest to so many parameters in all (30M, 1.5B)."""
    gpu: str = ""
    """Machine to plan for in place of this one, such as 8xH100 or RTX4090: only `nutshell plan` looks at it, and nothing runs."""
    width: int = 0
    """Channels (default 64 per layer, rounded to whole heads)."""
    heads: int = 0
    """Query heads (default width / head_dim)."""
    kv_heads: int = 0
    """Key/value heads (default as many as heads)."""
    head_dim: int = 0
    """Channels per head (default 64 up to width 512, else 128)."""
    context: int = 0
    """Longest row in tokens (default 512 up to depth 8, else 2048)."""
    window_pattern: str = ""
    """Attention windows tiled over the layers: S a quarter of the context, L all of it (default SSSL; only speed has S)."""
    short_window: int = 0
    """Tokens that an S layer attends over (speed only; default a quarter of the context)."""
    qk_norm: bool = True
    """Queries and keys are normed by head; without it portable has Llama's shape."""
    norm_eps: float = 1e-6
    """What portable's norms add to the mean square (below 1)."""
    rotary_base: float = 100_000.0
    """Of the rotary position embeddings: larger turns slower."""
    smear: bool = True
    """Mix each embedding with the one before it (these six: speed only)."""
    backout: bool = True
    """Subtract the middle layer's output before the head."""
    value_embeddings: bool = True
    """Add a gated embedding of the token to the values of every other layer."""
    residual_scales: bool = True
    """Scale the residual stream of each layer and add the embedding to it, by learned numbers."""
    softcap: float = 15.0
    """Cap the logits smoothly to plus and minus this; 0 caps nothing."""
    qk_scale: float = 1.2
    """Norm queries and keys to this root mean square."""
    architecture: str = "speed"
    """speed is made to learn fast; portable is Qwen3's, whose checkpoints transformers opens; gpt2 is GPT-2's."""
    mlp_width: int = 0
    """Hidden channels of the MLP (portable and gpt2; default 8/3 or 4 times the width)."""
    tied: bool = False
    """The output head is the embedding (portable; gpt2's always is)."""
    vocab_size: int = 0
    """Tokens of the tokenizer, the 9 special ones included (default by depth: 4096 to 32768)."""
    tokenizer: str = ""
    """A tokenizer to use in place of a trained one: its folder, a tokenizer.json, or a rank file such as gpt2.tiktoken.
    The special tokens of chats are added where they are missing."""
    tokens_per_step: int = 0
    """Tokens in one optimizer step (default from the horizon)."""
    micro_batch_size: int = 0
    """Rows one device takes at once (default: as many as a step needs and fit, at most 65536 tokens)."""
    tokens_per_parameter: float = 12.0
    """Horizon of pretraining: training tokens per matrix parameter."""
    primer_characters: int = 12_000_000
    """Size of the primer text."""
    primer_conversations: int = 200_000
    """Most conversations of the primer that a stage reads; longer stages read them again."""
    validations: int = 0
    """Validations during pretraining (default 4, from a billion tokens on 10)."""
    validation_tokens: int = 0
    """Tokens of each (default 3% of the time of pretraining for all of them, at most 1M tokens each)."""
    seed: int = 42
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: str = "auto"
    """auto, float32, bfloat16 or float16 for matrix products; float16 scales the loss."""
    fp8: bool = False
    """Matrix products of the blocks in 8 bits while training (Ada, Hopper or Blackwell GPUs)."""
    threads: int = 0
    """CPU threads; 0 takes all."""
    shard: str = "state"
    """What several ranks divide among them: `state`, the optimizer's, or `weights` too, for a model that does not fit one GPU."""
    save_every_seconds: float = 0.0
    """A checkpoint this often, later where the disk is still busy with the last one (default: so that it costs at most 1%)."""
    keep_checkpoints: int = 2
    """Keep this many checkpoints of each stage, and pretraining's best by validation bits per byte besides (best.json names
    it). The newest two can be resumed, older ones keep their weights only."""
    damaged_checkpoint: Literal["stop", "previous"] = "stop"
    """Where the newest checkpoint is damaged: stop and name the file, or go on from the previous one."""
    damaged_shards: Literal["stop", "skip"] = "stop"
    """Where a shard of the training text is damaged or empty: stop and name it, or skip what cannot be read, with a note."""
    usd_per_hour: float = 0.0
    """Price of the machine, for costs and budgets in dollars (default with --gpu: that machine's, see plan/hardware.py)."""
    mfu: float = 0.0
    """With --gpu, the share of the peak that training is assumed to keep (default: that machine's)."""
    scaling: str = ""
    """The scaling.json of `nutshell scaling` that the expected bits per byte come from (default: the packaged one)."""
    eval_tasks: tuple[str, ...] = ()
    """Score each stage on these tasks, or on `none` (default: the primer's after training on it, and those of --eval-data)."""
    eval_items: int = 200
    """Held-out items of each task after each stage."""
    eval_data: str = ""
    """Folder with arc/ and gsm8k/ for their benchmarks, or a .jsonl file for the task `custom`; empty leaves them out."""
    loggers: tuple[Literal["wandb", "tensorboard"], ...] = ()
    """Where the metrics go besides metrics.jsonl: wandb, tensorboard. Nothing leaves the machine by default."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: Schedule = field(default_factory=Schedule)
    stages: Stages = field(default_factory=Stages)

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; accepted: {', '.join(choices)}.")
        if unknown := set(self.loggers) - {"wandb", "tensorboard"}:
            raise ValueError(f"loggers names {', '.join(sorted(unknown))}; accepted: wandb, tensorboard.")
        check_ranges(self, RANGES)
        check_ranges(self, RANGES_OR_ZERO, or_zero=True)
        if any(part.rows for part in self.stages.pretrain.mixture):
            raise ValueError("rows in pretraining's mixture: accepted are weights and epochs; text is taken whole.")
        if tasks := [part.task for part in self.stages.pretrain.mixture if part.task]:
            raise ValueError(f"task {tasks[0]!r} in pretraining's mixture: tasks are conversations, for midtrain and sft.")
        if self.architecture == "speed" and self.tied:
            raise ValueError("tied is for --architecture portable; speed's embedding and head are apart. Leave out --tied.")
        if self.architecture == "speed" and self.mlp_width:
            raise ValueError("mlp_width is for the other architectures; speed's MLP is 4 widths. Leave out --mlp-width.")
        if self.architecture != "speed" and self.window_pattern not in ("", "L"):
            problem = f"window_pattern is {self.window_pattern!r}; {self.architecture} has no windows"
            raise ValueError(f"{problem}. Leave out --window-pattern.")
        if self.fp8 and self.shard == "weights":
            raise ValueError("--fp8 does not go with --shard weights: fp8 weights are quantised whole. Leave one of the two out.")
        if self.params and self.depth:
            raise ValueError(f"params is {self.params!r} and depth {self.depth}: both choose the depth. Leave out one.")
        if self.params:
            quantity(self.params, "params")
        if self.gpu:
            parse_machine(self.gpu)
        self.budget_seconds()
        parse_identity(self.identity)

    def tasks_after(self, stage: str) -> tuple[str, ...]:
        """What the model is scored on after a stage: the primer's tasks only where it has trained on the primer."""
        if self.eval_tasks:
            return tuple(name for name in self.eval_tasks if name != "none")
        config = getattr(self.stages, stage)
        if stage == "rl":
            on_primer = self.stages.rl.on_primer
        elif config.mixture:
            on_primer = any(part.data == PRIMER for part in config.mixture)
        else:
            own = stage != "pretrain" and (self.sft == PRIMER or getattr(config, "primer_share", 0.0) > 0)
            on_primer = self.data == PRIMER or own
        return PRIMER_TASKS * on_primer + (("arc-easy", "gsm8k") if self.eval_data else ())

    @property
    def first_stage(self) -> str:
        """The stage that the run begins with: pretraining, but where it begins with another model and leaves that out."""
        if not self.init_from:
            return "pretrain"
        begun = (name for name, stage in vars(self.stages).items() if stage.share or stage.steps or getattr(stage, "pairs", ""))
        return next(begun, "pretrain")

    def price(self) -> float:
        """Dollars an hour; 0 where unknown."""
        return self.usd_per_hour or (parse_machine(self.gpu).usd_per_hour if self.gpu else 0.0)

    def budget_seconds(self) -> float:
        """The budget in seconds; 0 without one."""
        return seconds(self.budget, self.price())


FREE_IN_A_RUN = (
    "out", "device", "dtype", "threads", "fp8", "micro_batch_size", "shard", "save_every_seconds", "keep_checkpoints",
    "damaged_checkpoint", "damaged_shards", "skip_bad", "eval_tasks", "eval_items", "eval_data", "loggers", "usd_per_hour",
    "budget",
)  # fmt: skip
"""Settings that may differ from the plan of a run that goes on: where it runs, what it keeps, what it is scored on."""
SOURCES = ("data", "sft", "tokenizer", "init_from")
"""What a run reads of other places. It goes on with its own copy, so the original may be moved, and named at its new place."""

SHORT_FLAGS = {
    "--init": "--init-from", "--pairs": "--stages.dpo.pairs", "--prompts": "--stages.rl.tasks", "--tasks": "--stages.rl.tasks",
    "--reward": "--stages.rl.reward",
}  # fmt: skip
"""Short for settings of the later stages, at every verb that takes a recipe."""
OLD_NAMES = {"rows": "micro_batch_size", "lr_scale": "lr_fraction"}
"""Settings by the names they had until version 0.2; understood for one version more, with a note."""


def new_name(old: str) -> str:
    """A setting's name of today, with a note on stderr where it is another."""
    if old in OLD_NAMES:
        print(f"{old} is called {OLD_NAMES[old]} now; the old name will be refused in the next version.", file=sys.stderr)
    return OLD_NAMES.get(old, old)


def with_new_names(values: dict) -> dict:
    """The tables of a recipe with each old name replaced."""
    return {new_name(key): with_new_names(value) if isinstance(value, dict) else value for key, value in values.items()}


def flags_with_new_names(arguments: list[str]) -> list[str]:
    """The same for flags: --rows 4, --rows=4, --stages.sft.lr-scale 0.5. Short flags become those that they stand for."""

    def replaced(found: re.Match[str]) -> str:
        return found[1] + new_name(found[2].replace("-", "_")).replace("_", "-")

    arguments = [re.sub(r"^--[\w-]+(?==|$)", lambda flag: SHORT_FLAGS.get(flag[0], flag[0]), argument) for argument in arguments]
    return [re.sub(r"^(--(?:[\w-]+\.)*)(rows|lr[-_]scale)(?==|$)", replaced, argument) for argument in arguments]


@dataclass(frozen=True, kw_only=True)
class Sweep(Recipe):
    """What `nutshell scaling` may be told besides the settings of a run."""

    out: str = "runs/scaling"
    """Folder of the sweep; going on in it continues the sweep."""
    depths: tuple[int, ...] = (1, 2, 3)
    """Depths to train."""
    horizons: tuple[str, ...] = ()
    """Training tokens to train each depth on, such as 500k 1M 2M (default: what a budget allows, its half and its quarter)."""
    refresh: bool = True
    """Make the fit the one that `nutshell plan` uses (the one before is kept in the sweep's folder)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for value in (*self.depths, *(quantity(h, "horizons") for h in self.horizons)):
            if value < 1:
                raise ValueError(f"depths {self.depths} and horizons {self.horizons}: accepted are numbers of at least 1.")
        if len(set(self.depths)) < 2 or (self.horizons and len({quantity(h) for h in self.horizons}) < 2):
            raise ValueError("a fit needs two depths and two horizons, such as --depths 1 2 3 --horizons 500k 1M 2M.")
        if self.depth or self.params:
            raise ValueError("a sweep takes its depths from --depths; leave out --depth and --params.")
        if not self.budget and not self.horizons:
            raise ValueError("neither budget nor horizons are given. Use --budget 20min, or --horizons 500k 1M 2M.")


@dataclass(frozen=True, kw_only=True)
class Ablation(Recipe):
    """What `nutshell ablate` may be told besides the settings of a run."""

    out: str = "runs/ablate"
    """Folder of the ablation; the same command in it goes on."""
    vary: tuple[str, ...] = ()
    """A setting and its values, such as optimizer.matrix_lr=0.01,0.02 or smear=false. The first is the baseline; a single one is
    compared with the recipe's own. Several --vary make a grid."""
    each: bool = False
    """Vary one setting at a time, the others staying at their first value."""
    seeds: int = 3
    """Runs of each variant. A seed draws weights and the order of the data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, {"seeds": (1, math.inf)})


def seconds(budget: str, usd_per_hour: float = 0.0) -> float:
    """'90s', '8min', '2h', or '100usd' at a price, in seconds; '' is 0 (no budget). ValueError for anything else."""
    if not budget:
        return 0.0
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|sec|min|m|h|usd)\s*", budget)
    if match and match[2] == "usd" and not usd_per_hour:
        raise ValueError(f"budget is {budget!r}, the price of the machine is unknown: give --usd-per-hour 24, or --gpu 8xH100.")
    factors = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "usd": 3600 / (usd_per_hour or 1)}
    if not match or float(match[1]) * factors[match[2]] < 10:
        raise ValueError(f"budget is {budget!r}; accepted: at least 10s, written like 90s, 8min or 2h, or 100usd.")
    return float(match[1]) * factors[match[2]]


def parse_identity(text: str) -> dict[str, str]:
    """'name=Acorn,maker="the physics class"' as {"name": ..., "maker": ...}; a value may hold commas. ValueError for others."""
    found: dict[str, str] = {}
    for part in re.split(r",\s*(?=\w+\s*=)", text) if text else ():
        key, _, value = (side.strip() for side in part.partition("="))
        value = value.strip("\"'").strip()
        if key not in ("name", "maker") or key in found or not value or not value.isprintable() or len(value) > 80:
            raise ValueError(f'identity is {text!r}; accepted: name=Acorn,maker="the physics class", or one of the two.')
        found[key] = value
    return found


def quantity(text: str, name: str = "quantity") -> float:
    """'500k', '124M', '1.5B' or plain digits as a number; ValueError for anything else, with the setting's name."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMB]?)\s*", text)
    if not match or not float(match[1]):
        raise ValueError(f"{name} is {text!r}; accepted: a number above 0, written like 500k, 124M or 1.5B.")
    return float(match[1]) * {"": 1, "k": 1e3, "M": 1e6, "B": 1e9}[match[2]]
