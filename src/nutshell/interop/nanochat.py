"""A checkpoint of karpathy/nanochat becomes a model folder of the `speed` architecture.

What is read: `model_NNNNNN.pt` and `meta_NNNNNN.json` of the highest step, and `tokenizer.pkl`. Both kinds of pickle are opened
by readers that make tensors, or a table of tokens, and nothing else.

Checkpoints do not say which nanochat made them; their tensors do (history of nanochat/gpt.py, October 2025 to July 2026). What
differs from ours then: with nanochat a token is smeared into a `<|bos|>` in the middle of a row, and attention reaches across it.
"""

from __future__ import annotations

import base64
import io
import pickle
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nutshell.interop.hf_import import read_json, save
from nutshell.interop.output import refuse_existing
from nutshell.model.config import VALUE_GATE_CHANNELS, ModelConfig
from nutshell.model.decoder import Decoder
from nutshell.tokenizer import SPECIAL_TOKENS, Tokenizer

NAMES = {
    r"transformer\.wte": "embedding",
    r"transformer\.h\.(\d+)\.attn\.c_([qkv])": r"blocks.\1.attention.\2",
    r"transformer\.h\.(\d+)\.attn\.c_proj": r"blocks.\1.attention.out",
    r"transformer\.h\.(\d+)\.attn\.ve_gate": r"blocks.\1.attention.value_gate",
    r"transformer\.h\.(\d+)\.mlp\.c_fc": r"blocks.\1.mlp.up",
    r"transformer\.h\.(\d+)\.mlp\.c_proj": r"blocks.\1.mlp.down",
    r"value_embeds\.(\d+)": r"value_embeddings.\1",
    "resid_lambdas": "residual_scale",
    "x0_lambdas": "embedding_scale",
    "backout_lambda": "backout",
}
"""nanochat's names to ours, `.weight` left out; the others are the same."""


def import_nanochat(folder: Path, out: Path) -> Decoder:
    """Write the model folder `out` from a checkpoint folder of nanochat and return its model.

    FileNotFoundError for a missing folder or file; ValueError for a pickle of anything else, or a shape that is not ours.
    """
    refuse_existing(out)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist. Give a folder with model_NNNNNN.pt and meta_NNNNNN.json.")
    steps = sorted(path for path in folder.iterdir() if re.fullmatch(r"model_\d+\.pt", path.name))
    if not steps:
        raise FileNotFoundError(f"{folder} holds no model_NNNNNN.pt. Give a folder such as base_checkpoints/d20.")
    theirs = read_json(steps[-1].with_name(steps[-1].name.replace("model_", "meta_").replace(".pt", ".json")))
    tok = read_tokenizer(folder)
    weights = {our_name(name): tensor for name, tensor in read_tensors(steps[-1]).items()}
    try:
        config = shape(theirs["model_config"], weights, tok)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder} has a meta file without {error}. Give a checkpoint of nanochat, whole.") from None
    if not config.has_backout:
        weights.pop("backout", None)  # of a model of one or two layers it scales what the last norm scales back
    return save(out, config, weights, tok, source=str(steps[-1]))


def shape(theirs: dict[str, Any], weights: dict[str, Tensor], tok: Tokenizer) -> ModelConfig:
    """The shape of a checkpoint: sizes from its meta file, the rest from the tensors that it has."""
    context, width, heads = theirs["sequence_len"], theirs["n_embd"], theirs["n_head"]
    depth = theirs["n_layer"]
    gate = weights.get(f"blocks.{depth - 1}.attention.value_gate.weight")
    if "smear_lambda" in weights:  # since 14 March 2026
        base, qk_scale, short = 100_000.0, 1.2, -(-context // 4 // 128) * 128
    elif gate is not None and gate.size(1) == VALUE_GATE_CHANNELS:  # 9 to 14 March 2026
        base, qk_scale, short = 100_000.0, 1.15, -(-context // 3 // 128) * 128
    elif not any(name.startswith("value_embeddings") for name in weights):  # until 16 January 2026
        base, qk_scale, short = 10_000.0, 1.0, context // 2
    else:
        raise ValueError(
            "the checkpoint is of nanochat between 16 January and 9 March 2026, whose value embeddings are others than ours. "
            "Accepted: checkpoints from before or after."
        )
    if tok.vocab_size != theirs["vocab_size"]:
        raise ValueError(
            f"tokenizer.pkl has {tok.vocab_size} tokens, the checkpoint's meta file says {theirs['vocab_size']}. "
            "Use the tokenizer that the model was trained with."
        )
    return ModelConfig(
        vocab_size=weights["embedding.weight"].size(0),  # padded to a multiple of 64; `save` leaves the padding out
        depth=depth, width=width, heads=heads, kv_heads=theirs["n_kv_head"], head_dim=width // heads, context=context,
        window_pattern=theirs.get("window_pattern", "L").upper(),
        short_window=min(short + 1, context),  # theirs leaves the token itself out of the count
        bos_id=tok.bos_id, rotary_base=base, qk_scale=qk_scale, softcap=15.0, smear="smear_lambda" in weights,
        backout="backout" in weights, value_embeddings=gate is not None, residual_scales="residual_scale" in weights,
    )  # fmt: skip


def our_name(name: str) -> str:
    """Our name of a tensor; torch.compile's prefix is left out."""
    module, dot, kind = name.removeprefix("_orig_mod.").partition(".weight")
    for pattern, ours in NAMES.items():
        if re.fullmatch(pattern, module):
            return re.sub(pattern, ours, module) + dot + kind
    return module + dot + kind


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.pt` file, with torch's reader for files that are not trusted."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{path} is no file of tensors alone: {reason} Accepted: model_NNNNNN.pt as nanochat saves it."
        ) from None
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise ValueError(f"{path} holds other things than tensors. Accepted: model_NNNNNN.pt as nanochat saves it.")
    return content


class Encoding:
    """Takes the place of tiktoken's `Encoding` in a pickle: it keeps what that is made of."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Reader(pickle.Unpickler):
    """Makes tables, numbers, texts and `Encoding`; any other class or function in the file is refused, and none is called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("tiktoken.core", "Encoding"):
            return Encoding
        raise pickle.UnpicklingError(f"it names {module}.{name}, and only tiktoken.core.Encoding is accepted")


def read_tokenizer(folder: Path) -> Tokenizer:
    """nanochat's `tokenizer.pkl`, beside the checkpoint or where nanochat keeps it, as our tokenizer."""
    places = [folder, folder / "tokenizer", *(parent / "tokenizer" for parent in folder.resolve().parents[:2])]
    path = next((place / "tokenizer.pkl" for place in places if (place / "tokenizer.pkl").is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder} holds no tokenizer.pkl, nor does a folder tokenizer beside it. Copy it there.")
    try:
        encoding = Reader(io.BytesIO(path.read_bytes())).load()
        state = encoding.state
        ranks, special, pattern = (state[name] for name in ("mergeable_ranks", "special_tokens", "pat_str"))
        lines = [base64.b64encode(token) + b" %d" % rank for token, rank in sorted(ranks.items(), key=lambda entry: entry[1])]
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"{path} is not a tokenizer of nanochat: {error}.") from None
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "nanochat.tiktoken").write_bytes(b"\n".join(lines) + b"\n")
        tok = Tokenizer.load(Path(scratch) / "nanochat.tiktoken", pattern).with_special_tokens()
    if special != tok.special_tokens:
        raise ValueError(f"{path} has the special tokens {special!r:.200}. Accepted: {', '.join(SPECIAL_TOKENS)}, at the end.")
    return tok
