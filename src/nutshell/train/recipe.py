"""A recipe is data: everything a user may set before a run. The plan turns it into numbers of steps.

Nothing here needs torch, so that `nutshell VERB --help` answers at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from nutshell.model.config import ARCHITECTURES
from nutshell.train.schedule import Schedule

PRIMER = "primer"
SHORTEST_CONTEXT = 16  # a question and the beginning of an answer


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Learning rates at width 768 and 2^19 tokens a step; the plan scales them (see `scaled_optimizer`)."""

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

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}; accepted: a finite number of at least 0.")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One training stage."""

    share: float = 0.0
    """Share of the budget's training time this stage gets."""
    steps: int = 0
    """Optimizer steps; 0 lets the plan decide."""
    lr_scale: float = 1.0
    """Peak learning rates as a share of pretraining's."""
    primer_share: float = 0.0
    """Share of primer conversations where --sft names a file (midtrain and sft)."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is {self.share}; accepted: 0 to 1.")
        if self.steps < 0:
            raise ValueError(f"steps is {self.steps}; accepted: 0 (the plan decides) or more.")
        if not 0 <= self.lr_scale < float("inf"):
            raise ValueError(f"lr_scale is {self.lr_scale}; accepted: a finite number of at least 0.")
        if not 0 <= self.primer_share <= 1:
            raise ValueError(f"primer_share is {self.primer_share}; accepted: 0 to 1.")


@dataclass(frozen=True, kw_only=True)
class RLConfig(StageConfig):
    """Reinforcement learning: GRPO-style, on-policy, rewards that can be checked."""

    prompts: int = 16
    """Problems a step."""
    samples: int = 8
    """Answers drawn for each problem."""
    max_tokens: int = 96
    """Longest answer."""
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompts < 1 or self.samples < 2:
            raise ValueError(f"rl has prompts {self.prompts} and samples {self.samples}; accepted: at least 1 and at least 2.")
        if self.max_tokens < 1 or not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"rl has max_tokens {self.max_tokens} and temperature {self.temperature}; accepted: at least 1 and above 0."
            )


@dataclass(frozen=True, kw_only=True)
class Stages:
    pretrain: StageConfig = field(default_factory=lambda: StageConfig(share=0.45))
    midtrain: StageConfig = field(default_factory=lambda: StageConfig(share=0.25, lr_scale=0.7, primer_share=0.5))
    sft: StageConfig = field(default_factory=lambda: StageConfig(share=0.20, lr_scale=0.5, primer_share=0.2))
    rl: RLConfig = field(default_factory=lambda: RLConfig(share=0.10, lr_scale=0.1))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a run. Zero or empty means: the plan decides."""

    out: str = "runs/default"
    """Run folder; going on in it continues the run."""
    data: str = PRIMER
    """Text for pretraining: a .txt, .jsonl, .parquet or .md file, a folder of them, or `primer`, the embedded schoolbook."""
    sft: str = PRIMER
    """Conversations for fine-tuning: a .jsonl file or folder with `messages`, or `primer`."""
    budget: str = ""
    """Time for everything: 90s, 8min, 2h. The plan then fits model and horizon to this machine."""
    depth: int = 0
    """The one dial: transformer blocks. Width, heads, batch, rates and horizon follow."""
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
    """Attention windows tiled over the layers: S a quarter of the context, L all of it (default SSSL; portable has only L)."""
    architecture: str = "speed"
    """speed is made to learn fast; portable is Qwen3's, whose checkpoints transformers, vLLM and llama.cpp open."""
    tied: bool = False
    """The output head is the embedding (portable only)."""
    vocab_size: int = 0
    """Tokens of the tokenizer, the 9 special ones included (default by depth: 4096 to 32768)."""
    tokenizer: str = ""
    """A tokenizer to use in place of a trained one: its folder, a tokenizer.json, or a rank file such as gpt2.tiktoken.
    The special tokens of chats are added where they are missing."""
    tokens_per_step: int = 0
    """Tokens in one optimizer step (default from the horizon)."""
    rows: int = 0
    """Rows one device takes at once (default: as many as a step needs, at most 32)."""
    tokens_per_parameter: float = 12.0
    """Horizon of pretraining: training tokens per matrix parameter."""
    primer_characters: int = 12_000_000
    """Size of the primer text."""
    seed: int = 42
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: str = "auto"
    """auto, float32 or bfloat16 for matrix products."""
    threads: int = 0
    """CPU threads; 0 takes all."""
    save_every_seconds: float = 30.0
    """A checkpoint at least this often."""
    usd_per_hour: float = 0.0
    """Price of this machine, for the report's cost table."""
    eval_items: int = 200
    """Held-out items of each task after each stage."""
    eval_data: str = ""
    """Folder with arc/ and gsm8k/ for their benchmarks; empty leaves them out."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: Schedule = field(default_factory=Schedule)
    stages: Stages = field(default_factory=Stages)

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture is {self.architecture!r}; accepted: {', '.join(ARCHITECTURES)}.")
        if self.architecture == "speed" and self.tied:
            raise ValueError("tied is for --architecture portable; speed's embedding and head are apart. Leave out --tied.")
        if self.architecture == "portable" and self.window_pattern not in ("", "L"):
            raise ValueError(f"window_pattern is {self.window_pattern!r}; portable has no windows. Leave out --window-pattern.")
        limits = {
            "depth": 256,
            "width": 65536,
            "heads": 1024,
            "kv_heads": 1024,
            "head_dim": 1024,
            "context": 1 << 20,
            "rows": 4096,
        }
        for name, top in limits.items():
            if not 0 <= getattr(self, name) <= top:
                raise ValueError(f"{name} is {getattr(self, name)}; accepted: 0 (the plan decides) to {top}.")
        for name in ("seed", "tokens_per_step"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; accepted: at least 0.")
        if 0 < self.context < SHORTEST_CONTEXT:
            raise ValueError(f"context is {self.context}; accepted: at least {SHORTEST_CONTEXT} (0: the plan decides).")
        if self.vocab_size and self.vocab_size < 256 + 9:
            raise ValueError(f"vocab_size is {self.vocab_size}; accepted: at least 265 (256 bytes and 9 special tokens).")
        if self.eval_items < 1:
            raise ValueError(f"eval_items is {self.eval_items}; accepted: at least 1.")
        if self.primer_characters < 10_000:
            raise ValueError(f"primer_characters is {self.primer_characters}; accepted: at least 10000.")
        if not 0 < self.tokens_per_parameter < float("inf"):
            raise ValueError(f"tokens_per_parameter is {self.tokens_per_parameter}; accepted: a number above 0.")
        if not self.save_every_seconds > 0 or not self.usd_per_hour >= 0:
            raise ValueError("save_every_seconds must be above 0 and usd_per_hour at least 0.")
        seconds(self.budget)


def seconds(budget: str) -> float:
    """'90s', '8min', '2h' in seconds; '' is 0 (no budget). ValueError for anything else."""
    if not budget:
        return 0.0
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|sec|min|m|h)\s*", budget)
    factors = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}
    if not match or float(match[1]) * factors[match[2]] < 10:
        raise ValueError(f"budget is {budget!r}; accepted: at least 10s, written like 90s, 8min or 2h.")
    return float(match[1]) * factors[match[2]]
