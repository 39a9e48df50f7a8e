"""The shape of a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

SMEAR_CHANNELS = 24
VALUE_GATE_CHANNELS = 12
RMS_EPS = 1e-6  # what norms add to the mean square
LARGEST_SOFTCAP = 40.0  # beyond it a softmax of capped logits underflows in fp32
ARCHITECTURES = ("speed", "portable", "gpt2")
SPEED_ONLY = ("short_window", "smear", "backout", "value_embeddings", "residual_scales", "softcap", "qk_scale")
"""Switches of the `speed` architecture. Their formulas and sources are in docs/design.md."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a model of any architecture; saved as `config.json`."""

    vocab_size: int
    """Tokens in the vocabulary, special tokens included."""
    depth: int
    """Transformer blocks."""
    width: int
    """Channels of the residual stream (C)."""
    heads: int
    """Query heads (H)."""
    kv_heads: int
    """Key/value heads (K); divides `heads`."""
    head_dim: int
    """Channels per head (D), even."""
    context: int = 2048
    """Longest row of tokens the model is trained on and can attend over."""
    window_pattern: str = "SSSL"
    """Tiled over the layers: S attends over a part of the context, L over all of it. The last layer is always L."""
    short_window: int = 0
    """Tokens that S attends over, where they are not a quarter of the context (speed only)."""
    bos_id: int = 0
    """The token that starts every document; smearing does not reach across it."""
    rotary_base: float = 100_000.0
    """Of the rotary position embeddings: larger turns slower."""
    mlp_width: int = 0
    """Hidden channels of the MLP of portable and gpt2; speed's are always 4 times the width, and this is 0."""
    tied: bool = False
    """The head is the embedding: optional in portable, always in gpt2, never in speed."""
    qk_norm: bool = True
    """Queries and keys are normed by head; without it portable is Llama's shape instead of Qwen3's."""
    norm_eps: float = RMS_EPS
    """What portable's norms add to the mean square: 1e-5 in many models of Llama's shape."""
    architecture: str = "speed"
    """`speed` (model/gpt.py), `portable` (model/qwen3.py) or `gpt2` (model/gpt2.py)."""
    smear: bool = True
    """Each embedding is mixed with the one before it."""
    backout: bool = True
    """The middle layer's output is subtracted before the head, in models of at least 3 layers."""
    value_embeddings: bool = True
    """Every other layer adds a gated embedding of the token to its values."""
    residual_scales: bool = True
    """Each layer scales the residual stream and adds the embedding to it, by learned numbers."""
    softcap: float = 15.0
    """Logits are capped smoothly to plus and minus this; 0 caps nothing."""
    qk_scale: float = 1.2
    """Queries and keys are normed to this root mean square."""

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture is {self.architecture!r}; accepted: {', '.join(ARCHITECTURES)}.")
        for name in ("vocab_size", "depth", "width", "heads", "kv_heads", "head_dim", "context"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; accepted: a whole number of at least 1.")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"kv_heads is {self.kv_heads}, which does not divide heads = {self.heads}. "
                f"Accepted: {', '.join(str(k) for k in range(1, self.heads + 1) if self.heads % k == 0)}."
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; rotary embeddings need an even number. Try {self.head_dim + 1}.")
        if not self.rotary_base > 0:
            raise ValueError(f"rotary_base is {self.rotary_base}; accepted: a number above 0.")
        if not (self.softcap == 0 or 1 <= self.softcap <= LARGEST_SOFTCAP):
            raise ValueError(f"softcap is {self.softcap}; accepted: 0 (none), or 1 to {LARGEST_SOFTCAP:g}.")
        if not 0 < self.qk_scale < float("inf"):
            raise ValueError(f"qk_scale is {self.qk_scale}; accepted: a number above 0.")
        if not 0 < self.norm_eps < 1:
            raise ValueError(f"norm_eps is {self.norm_eps}; accepted: a number between 0 and 1.")
        if self.architecture != "portable" and not (self.qk_norm and self.norm_eps == RMS_EPS):
            raise ValueError(f"qk_norm and norm_eps are portable's; {self.architecture} has no such switch. Leave them out.")
        if self.architecture == "speed":
            self._check_speed()
        else:
            self._check_portable_or_gpt2()

    def _check_speed(self) -> None:
        if self.mlp_width or self.tied:
            raise ValueError(
                f"mlp_width is {self.mlp_width} and tied is {self.tied}; speed has neither. Leave them out, or use portable."
            )
        if self.width < SMEAR_CHANNELS:
            raise ValueError(f"width is {self.width}; accepted: at least {SMEAR_CHANNELS}.")
        if not 0 <= self.short_window <= self.context:
            raise ValueError(f"short_window is {self.short_window}; accepted: 0 (a quarter) to the context, {self.context}.")
        if not self.window_pattern or set(self.window_pattern) - {"S", "L"}:
            raise ValueError(f"window_pattern is {self.window_pattern!r}; accepted: letters S and L, for example SSSL.")

    def _check_portable_or_gpt2(self) -> None:
        shape = {"portable": "Qwen3", "gpt2": "GPT-2"}[self.architecture]
        defaults = {f.name: f.default for f in fields(self)}
        if changed := [name for name in SPEED_ONLY if getattr(self, name) != defaults[name]]:
            raise ValueError(
                f"{', '.join(changed)}: {self.architecture} is {shape}'s shape and has no such switch. "
                "Leave it out, or use speed."
            )
        if not isinstance(self.mlp_width, int) or self.mlp_width < 1:
            raise ValueError(f"mlp_width is {self.mlp_width!r}; {self.architecture} accepts a whole number of at least 1.")
        if self.window_pattern != "L":
            raise ValueError(f"window_pattern is {self.window_pattern!r}; {self.architecture} has no windows and accepts only L.")
        if self.architecture == "gpt2" and not (self.tied and self.kv_heads == self.heads):
            raise ValueError(f"tied is {self.tied}, kv_heads {self.kv_heads}; gpt2 accepts only True and as many as heads.")
        if self.architecture == "gpt2" and self.heads * self.head_dim != self.width:
            raise ValueError(f"heads x head_dim is {self.heads} x {self.head_dim}; gpt2 accepts only width = {self.width}.")

    def windows(self) -> list[int]:
        """How many tokens each layer attends over, itself included."""
        short = self.short_window or max(1, self.context // 4)
        pattern = [self.window_pattern[layer % len(self.window_pattern)] for layer in range(self.depth)]
        pattern[-1] = "L"
        return [short if kind == "S" else self.context for kind in pattern]

    def has_value_embedding(self, layer: int) -> bool:
        """Every other layer has one, the last included."""
        return self.value_embeddings and layer % 2 == (self.depth - 1) % 2

    @property
    def has_backout(self) -> bool:
        """Where the middle layer is the last one, subtracting it would only scale what the last norm scales back."""
        return self.backout and self.depth // 2 < self.depth - 1

    def to_dict(self) -> dict:
        return asdict(self)
