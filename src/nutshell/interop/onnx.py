"""ONNX: the whole forward pass in one file, ids (B, T) to logits (B, T, V), for ONNX Runtime and other readers of the format.

torch's exporter writes it and needs the packages `onnx` and `onnxscript`. There is no KV cache: the file is for scoring texts. To
continue a text, all of it must be given again for each token.
"""

from __future__ import annotations

import logging
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from nutshell.checkpoint import load_model
from nutshell.files import write_json
from nutshell.interop.output import new_folder
from nutshell.model.attention import AttentionContext
from nutshell.model.decoder import Decoder

LARGEST_FILE = 2_000_000_000
"""Bytes of weights that fit into the graph's own file, a protocol buffer of at most 2 GiB; larger ones go in a file beside it."""


class DenseContext(AttentionContext):
    """Attention over all keys at once: masks are (B, 1, T, T), True where a query sees a key. The blocks that training uses
    would be a loop over T, which a graph for any T cannot hold."""

    def attend(self, layer: int, window: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, T, D)
        groups = q.size(1) // k.size(1)
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        scores = (q @ k.transpose(2, 3)) * q.size(-1) ** -0.5
        weights = scores.masked_fill(~self.masks[window], float("-inf")).softmax(dim=-1)
        return (weights @ v).transpose(1, 2)


class Logits(nn.Module):
    """`Decoder.forward` without what a graph cannot hold."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        model, T = self.model, ids.size(1)
        documents = (ids == model.config.bos_id).cumsum(1)
        position = torch.arange(T, device=ids.device)
        age = position.unsqueeze(1) - position  # how far a key is behind a query
        own = (documents.unsqueeze(2) == documents.unsqueeze(1)) & (age >= 0)
        masks = {window: (own & (age < window)).unsqueeze(1) for window in set(model.config.windows())}
        ctx = DenseContext(positions=position, cos=model.cos[:T], sin=model.sin[:T], masks=masks)
        return model.head(model.hidden_states(ids, ctx))


def export_onnx(model: Path, out: Path) -> Path:
    """Write the folder `out` with `model.onnx` and the tokenizer's files. Returns the path of `model.onnx`.

    ValueError if the exporter's packages are missing.
    """
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise ValueError(f"export onnx needs {' and '.join(missing)}: pip install 'nutshell-lm[onnx]' (onnx, onnxscript).")
    decoder, tok, _ = load_model(model)
    for parameter in decoder.parameters():
        parameter.requires_grad_(False)
    ids = torch.full((2, min(3, decoder.config.context)), tok.bos_id)
    sizes = {"ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=decoder.config.context)}}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of packages that are not needed here
    with new_folder(out) as folder, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own code
        program = torch.onnx.export(
            Logits(decoder), (ids,), dynamo=True, dynamic_shapes=sizes, verbose=False, input_names=["ids"],
            output_names=["logits"],
        )  # fmt: skip
        assert program is not None
        weights = sum(parameter.numel() * parameter.element_size() for parameter in decoder.parameters())
        program.save(folder / "model.onnx", external_data=weights > LARGEST_FILE)
        tok.save(folder)
        settings = {"bos_token_id": tok.bos_id, "vocab_size": tok.vocab_size, "context": decoder.config.context}
        write_json(folder / "config.json", settings)
    return out / "model.onnx"
