"""Decoding on CPU in one native call per step for all rows and layers (`rust/src/decode`): weights and cache for it.

Torch is not needed, but where the model is one of torch's.

Every sequence's logits are the same bits alone and in a full batch, in every dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nutshell.infer.blocks import Chunk
from nutshell.infer.runner import LOGITS_AT_ONCE
from nutshell.infer.sampling import Logits, draw
from nutshell.infer.weights import Numbers, StoredModel, named_weights
from nutshell.machine import cores
from nutshell.model.config import RMS_EPS, ModelConfig
from nutshell.model.kv_blocks import BLOCK, blocks_of

try:
    from nutshell.tokenizer._bpe import Decoder, instructions
except ImportError:  # an extension that was built before it had a decoder
    Decoder = None  # type: ignore[assignment, misc]

KINDS = ("float32", "bfloat16")

STEP_TOKENS = 128
"""Go through the layers together."""


def dtype_of(model: Any) -> str:
    """What it computes in, by name."""
    return str(model.compute_dtype).removeprefix("torch.")


def why_not(model: Any) -> str | None:
    """Why this model cannot be decoded natively; None where it can."""
    if Decoder is None:
        return "the extension was built without it: run `make setup` again"
    stored = isinstance(model, StoredModel)
    if type(model).__name__ not in ("GPT", "Qwen3") and not (stored and model.config.architecture in ("speed", "portable")):
        return f"it knows GPT and Qwen3, and this is a {model.config.architecture if stored else type(model).__name__}"
    if not model.config.qk_norm or model.config.norm_eps != RMS_EPS:
        return "it norms queries and keys, with an epsilon of 1e-6"
    if not stored and next(model.parameters()).device.type != "cpu":
        return "the model is not on the CPU"
    if dtype_of(model) not in KINDS:
        return f"it computes in float32 and bfloat16, not in {dtype_of(model)}"
    return None


def threads_of(model: Any) -> int:
    """Most threads: as many as torch uses for its models. Where other programs hold the cores, fewer compute (`pace.rs`)."""
    if isinstance(model, StoredModel):
        return cores()
    import torch

    return torch.get_num_threads()


def kind_of(model: Any, int8: bool) -> str:
    """How weights are stored."""
    return "int8" if int8 else dtype_of(model)


def describe(model: Any, int8: bool) -> str:
    """What a `NativeRunner` computes with, for people."""
    kind, threads = kind_of(model, int8), threads_of(model)
    return f"native ({kind}, {instructions(kind)}, {'1 thread' if threads == 1 else f'up to {threads} threads'})"


class NativeCache:
    """Keys (layers, blocks, K, D, BLOCK) and values (layers, blocks, K, BLOCK, D), in fp32 or the bits of bf16."""

    def __init__(self, config: ModelConfig, blocks: int, dtype: str) -> None:
        outer, number = (config.depth, blocks, config.kv_heads), np.uint16 if dtype == "bfloat16" else np.float32
        self.keys = np.zeros((*outer, config.head_dim, BLOCK), number)
        self.values = np.zeros((*outer, BLOCK, config.head_dim), number)

    def touch(self) -> None:
        self.keys.fill(0)
        self.values.fill(0)


class NativeRunner:
    """The `Runner` of models on CPU. Matrices are copied in the kind they are multiplied in, embeddings are read where the model
    has them: after changing it call `take_weights`."""

    def __init__(
        self, model: Any, vocab_size: int, rows: int, context: int, blocks: int | None = None, *, int8: bool = False
    ) -> None:
        self.model, self.vocab_size, self.int8 = model, vocab_size, int8
        self.cache = NativeCache(model.config, blocks or rows * blocks_of(context), dtype_of(model))
        self.logits: Logits = np.zeros((rows, -(-vocab_size // 16) * 16), np.float32)
        self.take_weights()

    def take_weights(self) -> None:
        model, cache = self.model, self.cache
        stored = isinstance(model, StoredModel)
        found = model.weights() if stored else {name: weight.detach() for name, weight in model.named_parameters()}
        try:
            weights = named_weights(model.config, found, self.vocab_size)
        except KeyError as error:
            raise ValueError(f"{model.folder}/model.safetensors has no {error}, which its config.json asks for.") from None
        self.tables: dict[str, Numbers] = {}  # native code reads them as long as it lives
        self._lent: list[Numbers] = []  # and these while it packs them

        def lend(name: str) -> list[tuple[int, int, bool]]:
            self._lent = [model.taken(part) if stored else part for part in weights[name]]
            if name.endswith("embedding"):
                [self.tables[name]] = self._lent
            return [lent(part) for part in self._lent]

        self.decoder = Decoder(
            native_shape(model.config, self.vocab_size), lend, kind=kind_of(model, self.int8), threads=threads_of(model),
            blocks=cache.keys.shape[1], bf16=cache.keys.dtype == np.uint16,
            keys=lent(cache.keys)[:2], values=lent(cache.values)[:2], logits=lent(self.logits)[:2],
        )  # fmt: skip
        self._lent = []

    def forward(self, chunks: Sequence[Chunk]) -> tuple[Logits, list[int]]:
        tokens = self.decoder.step([(chunk.blocks, chunk.start, chunk.previous, chunk.ids) for chunk in chunks])
        logits = self.logits[: len(chunks), : self.vocab_size]
        draws = {row: chunk.draw for row, chunk in enumerate(chunks) if chunk.draw and tokens[row] >= 0}
        if draws:
            some = logits if len(draws) == len(chunks) else logits[list(draws)]
            for row, token_id in zip(draws, draw(some, list(draws.values())), strict=True):
                tokens[row] = token_id
        return logits, tokens

    def prompt_logits(self, ids: Sequence[int], blocks: Sequence[int]) -> Iterator[Logits]:
        stride = self.logits.shape[1]
        logits: Logits = np.empty((max(1, min(STEP_TOKENS, LOGITS_AT_ONCE // stride)), stride), np.float32)
        for start in range(0, len(ids), len(logits)):
            part, previous = ids[start : start + len(logits)], ids[start - 1] if start else -1
            self.decoder.step([(blocks, start, previous, part)], lent(logits)[:2])
            yield logits[: len(part), : self.vocab_size]


def lent(numbers: Numbers) -> tuple[int, int, bool]:
    """Address and count of a tensor's or array's numbers, for native code that reads and writes them in place, and whether they
    are bf16."""
    if isinstance(numbers, np.ndarray):
        assert numbers.flags.c_contiguous
        return numbers.ctypes.data, numbers.size, numbers.dtype == np.uint16
    assert numbers.is_contiguous()
    return numbers.data_ptr(), numbers.numel(), numbers.element_size() == 2


def native_shape(config: ModelConfig, vocab_size: int) -> dict[str, Any]:
    """The fields of `Shape` in `rust/src/decode`."""
    speed = config.architecture == "speed"
    return {
        "vocab_size": vocab_size,
        "width": config.width,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "mlp_width": 4 * config.width if speed else config.mlp_width,
        "context": config.context,
        "windows": config.windows(),
        "bos_id": config.bos_id,
        "softcap": config.softcap if speed else 0.0,
        "normed_embedding": speed,
        "gated_mlp": not speed,
        "smear": speed and config.smear,
        "backout": speed and config.has_backout,
        "value_embeddings": [speed and config.has_value_embedding(layer) for layer in range(config.depth)],
    }
