"""Import a checkpoint of karpathy/nanochat as a model folder of the `speed` architecture, and export one.

A checkpoint is `model_NNNNNN.pt` and `meta_NNNNNN.json` (the highest step is read) and `tokenizer.pkl`. Both pickles are opened
by readers that make tensors, or a table of tokens, and nothing else.

A checkpoint does not say which version of nanochat made it; its tensors do (history of nanochat/gpt.py, October 2025 to July
2026). One difference from ours remains: in nanochat, smear and attention cross a `<|bos|>` in the middle of a row.
"""

from __future__ import annotations

import base64
import io
import pickle
import re
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nutshell.checkpoint import load_model
from nutshell.files import write_json
from nutshell.interop.hf_import import BY_TOKEN, read_json, save
from nutshell.interop.hf_nanochat import renamed
from nutshell.interop.output import new_folder, refuse_existing
from nutshell.model.config import VALUE_GATE_CHANNELS, ModelConfig
from nutshell.model.decoder import Decoder
from nutshell.tokenizer import SPECIAL_TOKENS, Tokenizer

NAMES = {
    "embedding": "transformer.wte",
    **{f"blocks.{{}}.attention.{name}": f"transformer.h.{{}}.attn.c_{name}" for name in "qkv"},
    "blocks.{}.attention.out": "transformer.h.{}.attn.c_proj",
    "blocks.{}.attention.value_gate": "transformer.h.{}.attn.ve_gate",
    "blocks.{}.mlp.up": "transformer.h.{}.mlp.c_fc",
    "blocks.{}.mlp.down": "transformer.h.{}.mlp.c_proj",
    "value_embeddings.{}": "value_embeds.{}",
    "residual_scale": "resid_lambdas",
    "embedding_scale": "x0_lambdas",
    "backout": "backout_lambda",
}
"""Our names of tensors to nanochat's, {} for the layer, without `.weight`. The other names are the same."""
OURS = {theirs: ours for ours, theirs in NAMES.items()}
STAGES = {"sft": "chatsft", "dpo": "chatsft", "rl": "chatrl"}
"""Our stages and the prefix of nanochat's folder for them; the others go to base_checkpoints."""
SPECIAL = f"the special tokens {', '.join(SPECIAL_TOKENS)} at the end"
PADDED_TO = 64
"""nanochat pads its vocabularies with unused rows to a multiple of this."""


def import_nanochat(folder: Path, out: Path) -> Decoder:
    """Write the model folder `out` from a checkpoint folder of nanochat, or a base directory with a single one; returns the
    model.

    FileNotFoundError for a missing folder or file; ValueError for a pickle of anything else, or an unsupported shape.
    """
    refuse_existing(out)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist. Give a folder with model_NNNNNN.pt and meta_NNNNNN.json.")
    if len(only := {file.parent for file in folder.glob("*_checkpoints/*/model_*.pt")}) == 1:
        folder = only.pop()
    steps = sorted(path for path in folder.iterdir() if re.fullmatch(r"model_\d+\.pt", path.name))
    if not steps:
        raise FileNotFoundError(f"{folder} holds no model_NNNNNN.pt. Give a folder such as base_checkpoints/d20.")
    theirs = read_json(steps[-1].with_name(steps[-1].name.replace("model_", "meta_").replace(".pt", ".json")))
    tok = read_tokenizer(folder)
    weights = {renamed(name.removeprefix("_orig_mod."), OURS): tensor for name, tensor in read_tensors(steps[-1]).items()}
    try:
        config = shape(theirs["model_config"], weights, tok)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder} has a meta file without {error}. Give a checkpoint of nanochat, whole.") from None
    if not config.has_backout:
        weights.pop("backout", None)  # in one or two layers it only scales, which the last norm undoes
    return save(out, config, weights, tok, source=str(steps[-1]))


def export_nanochat(model: Path, out: Path) -> Path:
    """Write a base directory for nanochat's newest code, with the model as a checkpoint and its tokenizer. Importing it again
    gives the same bits.

    ValueError says where that code computes something else, or why it can't use the tokenizer.
    """
    decoder, tok, manifest = load_model(model)
    config, meta = decoder.config, manifest["meta"]
    refuse_other(config)
    weights = {renamed(name, NAMES): tensor for name, tensor in decoder.state_dict().items()}
    if not config.has_backout:
        weights["backout_lambda"] = torch.zeros(1)
    for name, tensor in weights.items():
        if renamed(name, OURS).startswith(BY_TOKEN):
            weights[name] = F.pad(tensor, (0, 0, 0, -tensor.size(0) % PADDED_TO))
    theirs = {
        "sequence_len": config.context, "vocab_size": config.vocab_size, "n_layer": config.depth, "n_head": config.heads,
        "n_kv_head": config.kv_heads, "n_embd": config.width, "window_pattern": config.window_pattern,
    }  # fmt: skip
    with new_folder(out) as folder:
        save_tokenizer(folder / "tokenizer", tok)
        checkpoint = folder / f"{STAGES.get(meta.get('stage', ''), 'base')}_checkpoints" / f"d{config.depth}"
        checkpoint.mkdir(parents=True)
        step = meta.get("step", 0)
        torch.save(weights, content := io.BytesIO())  # into memory: on a full disk torch would only say "unexpected pos"
        (checkpoint / f"model_{step:06d}.pt").write_bytes(content.getbuffer())
        write_json(checkpoint / f"meta_{step:06d}.json", {"step": step, "max_seq_len": config.context, "model_config": theirs})
    return out


def refuse_other(config: ModelConfig) -> None:
    """ValueError if nanochat's code since 14 March 2026 would compute something else for a model of this shape."""
    if config.architecture != "speed":
        raise ValueError(f"nanochat's models are those of speed; this one is of the architecture {config.architecture}. Use hf.")
    short = min(short_window(config.context, 4), config.context)
    theirs = {
        "smear": True, "backout": True, "value_embeddings": True, "residual_scales": True, "softcap": 15.0, "qk_scale": 1.2,
        "rotary_base": 100_000.0, "width": config.heads * config.head_dim,
    }  # fmt: skip
    if replace(config, short_window=short).windows() != config.windows():
        theirs["short_window"] = short
    ours = asdict(replace(config, short_window=min(config.windows())))
    if other := [name for name in theirs if ours[name] != theirs[name]]:
        raise ValueError(
            f"the model has {', '.join(f'{name} {ours[name]}' for name in other)}, and nanochat's code has "
            f"{', '.join(f'{name} {theirs[name]}' for name in other)}. Accepted: a model trained with nanochat's values."
        )


def short_window(context: int, parts: int) -> int:
    """Window of nanochat's S layers in tokens: a part of the context, rounded up to 128, and the token itself."""
    return -(-context // parts // 128) * 128 + 1


def shape(theirs: dict[str, Any], weights: dict[str, Tensor], tok: Tokenizer) -> ModelConfig:
    """The shape of a checkpoint: sizes from its meta file, the rest from which tensors it has."""
    context, width, heads = theirs["sequence_len"], theirs["n_embd"], theirs["n_head"]
    depth = theirs["n_layer"]
    gate = weights.get(f"blocks.{depth - 1}.attention.value_gate.weight")
    if "smear_lambda" in weights:  # since 14 March 2026
        base, qk_scale, short = 100_000.0, 1.2, short_window(context, 4)
    elif gate is not None and gate.size(1) == VALUE_GATE_CHANNELS:  # 9 to 14 March 2026
        base, qk_scale, short = 100_000.0, 1.15, short_window(context, 3)
    elif not any(name.startswith("value_embeddings") for name in weights):  # until 16 January 2026
        base, qk_scale, short = 10_000.0, 1.0, context // 2 + 1
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
        short_window=min(short, context),
        bos_id=tok.bos_id, rotary_base=base, qk_scale=qk_scale, softcap=15.0, smear="smear_lambda" in weights,
        backout="backout" in weights, value_embeddings=gate is not None, residual_scales="residual_scale" in weights,
    )  # fmt: skip


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pt` file, read by torch's loader for untrusted files."""
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
    """Stands in for tiktoken's `Encoding` in a pickle and keeps its state."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Reader(pickle.Unpickler):
    """Loads dicts, numbers, texts and `Encoding`. Any other class or function in the file is refused, and none is called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("tiktoken.core", "Encoding"):
            return Encoding
        raise pickle.UnpicklingError(f"it names {module}.{name}, and only tiktoken.core.Encoding is accepted")


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read nanochat's `tokenizer.pkl`, which is beside the checkpoint or where nanochat keeps it."""
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
        raise ValueError(f"{path} has {special!r:.200}. Accepted: {SPECIAL}.")
    return tok


def save_tokenizer(folder: Path, tok: Tokenizer) -> None:
    """Write `tokenizer.pkl`, and `token_bytes.pt`: the bytes of each token (V,), for nanochat's bits per byte."""
    first = tok.vocab_size - len(SPECIAL_TOKENS)
    if tok.kind != "bpe" or tok.special_tokens != {name: first + place for place, name in enumerate(SPECIAL_TOKENS)}:
        raise ValueError(f"the model's tokenizer ({tok.kind}) has no place in nanochat. Accepted: byte-level BPE with {SPECIAL}.")
    try:
        import tiktoken
    except ImportError:
        raise ValueError("nanochat's tokenizer is written with tiktoken. Install it: pip install tiktoken") from None
    folder.mkdir()
    ranks = {tok.token_bytes(id): id for id in range(first)}
    encoding = tiktoken.Encoding("nutshell", pat_str=tok.pattern, mergeable_ranks=ranks, special_tokens=tok.special_tokens)
    (folder / "tokenizer.pkl").write_bytes(pickle.dumps(encoding))
    torch.save(torch.from_numpy(tok.token_byte_lengths()).int(), folder / "token_bytes.pt")
    if read_tokenizer(folder).merges != tok.merges:
        raise ValueError(
            "the bytes and ranks of its tokens do not tell the model's tokenizer. Accepted: one that nutshell trained."
        )
