"""The shape of a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass

SMEAR_CHANNELS = 24
VALUE_GATE_CHANNELS = 12


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a model; saved as `config.json`."""

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
    """Tiled over the layers: S attends over a quarter of the context, L over all of it. The last layer is always L."""
    bos_id: int = 0
    """The token that starts every document; smearing does not reach across it."""
    architecture: str = "speed"

    def __post_init__(self) -> None:
        if self.architecture != "speed":
            raise ValueError(f"architecture is {self.architecture!r}; accepted: 'speed'. Load a folder saved by nutshell.")
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
        if self.width < SMEAR_CHANNELS:
            raise ValueError(f"width is {self.width}; accepted: at least {SMEAR_CHANNELS}.")
        if not self.window_pattern or set(self.window_pattern) - {"S", "L"}:
            raise ValueError(f"window_pattern is {self.window_pattern!r}; accepted: letters S and L, for example SSSL.")

    def windows(self) -> list[int]:
        """How many tokens each layer attends over, itself included."""
        short = max(1, self.context // 4)
        pattern = [self.window_pattern[layer % len(self.window_pattern)] for layer in range(self.depth)]
        pattern[-1] = "L"
        return [short if kind == "S" else self.context for kind in pattern]

    def has_value_embedding(self, layer: int) -> bool:
        """Every other layer has one, the last included."""
        return layer % 2 == (self.depth - 1) % 2

    def to_dict(self) -> dict:
        return asdict(self)
