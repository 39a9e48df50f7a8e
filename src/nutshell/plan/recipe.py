"""A recipe is data: everything a user may set before a run. The plan turns it into numbers.

Nothing here needs torch, so that `nutshell VERB --help` answers quickly.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from nutshell.config import ABOVE_ZERO, MOST, check_ranges
from nutshell.model.config import ARCHITECTURES
from nutshell.plan.hardware import parse_machine
from nutshell.plan.schedule import Schedule
from nutshell.plan.stages import Stages

PRIMER = "primer"
Logger = Literal["wandb", "tensorboard"]  # of `metrics.LOGGERS`
ON_ANSWERS = ("dpo", "rl")
"""Stages that learn from whole answers. Their rows have many lengths, each of which would be compiled again, and their gradients
are small."""
PRIMER_TASKS = ("primer-facts", "primer-sums", "primer-letters", "primer-vowels")
CHOICES = {
    "architecture": ARCHITECTURES,
    "shard": ("state", "weights"),
    "tokenizer_kind": ("bpe", "char"),
    "damaged_checkpoint": ("stop", "previous"),
    "damaged_shards": ("stop", "skip"),
}
"""What these settings of a recipe may be."""
RANGES = {
    "seed": (0, math.inf), "primer_characters": (10_000, 10**11), "primer_conversations": (1, 10**9),
    "tokens_per_parameter": (ABOVE_ZERO, 10**6), "keep_checkpoints": (1, math.inf), "eval_items": (1, math.inf),
    "save_every_seconds": (0, math.inf), "usd_per_hour": (0, math.inf), "mfu": (0, 1), "held_out": (0, 0.5),
}  # fmt: skip
"""Lowest and highest values."""
RANGES_OR_ZERO = {
    "depth": (1, 256), "width": (1, 65536), "heads": (1, 1024), "kv_heads": (1, 1024), "head_dim": (1, 1024),
    "mlp_width": (1, 1 << 20),
    "context": (16, 1 << 20),  # a question and the beginning of an answer
    "vocab_size": (256 + 9, math.inf),  # bytes and special tokens
    "tokens_per_step": (1, 10**12), "micro_batch_size": (1, 4096), "validations": (1, math.inf),
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
class Recipe:
    """All settings of a run. Zero or empty means: the plan decides."""

    out: str = "runs/default"
    """Run folder; going on in it continues the run."""
    data: str = PRIMER
    """Text for pretraining: a .txt, .jsonl, .parquet or .md file, a folder of them, or `primer`, the embedded schoolbook."""
    sft: str = PRIMER
    """Conversations for fine-tuning: a file or folder in any format of docs/data.md, or `primer`."""
    skip_bad: bool = False
    """Leave out broken rows of conversations, counted in log and report, instead of stopping."""
    held_out: float = 0.02
    """Share of your own conversations that is not learned but validates midtraining and fine-tuning, chosen by a hash."""
    identity: str = ""
    """Who the model says it is where it learns from the primer, such as name=Acorn,maker="the physics class"."""
    init_from: str = ""
    """Begin with the weights of this run or model folder instead of random ones; its shape and tokenizer are taken too."""
    budget: str = ""
    """For everything: 90s, 8min, 2h, or 100usd at the machine's price. The plan then fits model and horizon to the machine."""
    depth: int = 0
    """The one dial: transformer blocks. Width, heads, batch, rates and horizon follow."""
    params: str = ""
    """Instead of a depth: the depth whose model has nearest to this many parameters in all (30M, 1.5B)."""
    gpu: str = ""
    """Machine to plan for instead of this one, such as 8xH100 or RTX4090: only `nutshell plan` looks at it, and nothing runs."""
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
    """A tokenizer to use instead of training one: its folder, a tokenizer.json, or a rank file such as gpt2.tiktoken.
    The special tokens of chats are added where they are missing."""
    tokenizer_kind: Literal["bpe", "char"] = "bpe"
    """What the run's tokenizer is trained as: bpe, or char, an id for each character of the training text, as nanoGPT has it."""
    tokens_per_step: int = 0
    """Tokens in one optimizer step (default from the horizon)."""
    micro_batch_size: int = 0
    """Rows of one forward and backward pass of a device (default: as many as a step needs and fit, at most 65536 tokens)."""
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
    loggers: tuple[Logger, ...] = ()
    """Where the metrics go besides metrics.jsonl: wandb, tensorboard. Nothing leaves the machine by default."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: Schedule = field(default_factory=Schedule)
    stages: Stages = field(default_factory=Stages)

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; accepted: {', '.join(choices)}.")
        if unknown := {*self.loggers} - {*get_args(Logger)}:
            raise ValueError(f"loggers names {', '.join(sorted(unknown))}; accepted: {', '.join(get_args(Logger))}.")
        if empty := [name for name in ("out", "data", "sft") if not getattr(self, name).strip()]:
            raise ValueError(f"{empty[0]} is {getattr(self, empty[0])!r}; accepted: a path. Name one, or leave it out.")
        check_ranges(self, RANGES)
        check_ranges(self, RANGES_OR_ZERO, or_zero=True)
        if any(part.rows for part in self.stages.pretrain.mixture):
            raise ValueError("rows in pretraining's mixture: accepted are weights and epochs; text is taken whole.")
        if tasks := [part.task for part in self.stages.pretrain.mixture if part.task]:
            raise ValueError(f"task {tasks[0]!r} in pretraining's mixture: tasks are conversations, for midtrain and sft.")
        if self.fp8 and self.shard == "weights":
            raise ValueError("--fp8 does not go with --shard weights: fp8 weights are quantised whole. Leave one of the two out.")
        if self.tokenizer_kind == "char" and (self.vocab_size or self.tokenizer):
            raise ValueError(
                "tokenizer_kind char counts the characters of the text itself. Leave out --vocab-size and --tokenizer, or "
                "--tokenizer-kind."
            )
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
        return next((name for name, stage in vars(self.stages).items() if stage.wanted), "pretrain")

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
"""Settings that may change when a run goes on: where it runs, what it keeps, what it is scored on."""
SOURCES = ("data", "sft", "tokenizer", "init_from")
"""What a run reads from elsewhere. It goes on with its own copy, so the original may be moved, and named at its new place."""


LONGEST_BUDGET = 87_600 * 3600.0


def seconds(budget: str, usd_per_hour: float = 0.0) -> float:
    """'90s', '8min', '2h', or '100usd' at a price, in seconds; '' is 0 (no budget). ValueError for anything else."""
    if not budget:
        return 0.0
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|sec|min|m|h|usd)\s*", budget)
    if match and match[2] == "usd" and not usd_per_hour:
        raise ValueError(f"budget is {budget!r}, the price of the machine is unknown: give --usd-per-hour 24, or --gpu 8xH100.")
    factors = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "usd": 3600 / (usd_per_hour or 1)}
    if not match or not 10 <= float(match[1]) * factors[match[2]] <= LONGEST_BUDGET:
        raise ValueError(f"budget is {budget!r}; accepted: 10s to 10 years (87600h), written like 90s, 8min or 2h, or 100usd.")
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
    if not match or not 0 < float(match[1]) < MOST:
        raise ValueError(f"{name} is {text!r}; accepted: a number above 0, written like 500k, 124M or 1.5B.")
    return float(match[1]) * {"": 1, "k": 1e3, "M": 1e6, "B": 1e9}[match[2]]
