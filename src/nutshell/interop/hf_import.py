"""Import a folder of transformers as a model folder: GPT-2, Qwen3, Llama, NanoChat, and what `export hf` wrote.

It reads `config.json`, `model.safetensors` (or its parts, with `model.safetensors.index.json`), and the tokenizer from
`tokenizer.json` or from `vocab.json` and `merges.txt`.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nutshell.checkpoint import take_snapshot, write_files
from nutshell.files import read_record
from nutshell.interop.gpt2 import config_from_gpt2, weights_from_gpt2
from nutshell.interop.hf_nanochat import config_from_nanochat, weights_from_nanochat
from nutshell.interop.output import new_folder, refuse_existing
from nutshell.model.build import build_model
from nutshell.model.config import ModelConfig
from nutshell.model.config_file import config_from_json
from nutshell.model.decoder import Decoder
from nutshell.tokenizer import Tokenizer

MODEL_TYPES = ("gpt2", "qwen3", "llama", "nanochat", "nutshell")
FOREIGN = {
    "mistral": "its attention may have a sliding window",
    "qwen2": "it has biases and no norms on queries and keys",
    "gpt_neo": "its attention is not scaled by the width of a head",
    "gpt_neox": "it rotates a part of each head, and attention stands beside the MLP",
}
"""Why other well-known architectures can't be imported: how they differ from portable and gpt2."""
BY_TOKEN = ("embedding.weight", "model.embed_tokens.weight", "lm_head.weight", "value_embeddings")
"""How the names of tensors with a row for each token begin."""


def import_hf(folder: Path, out: Path, *, chat: bool = False) -> Decoder:
    """Write the model folder `out` from a folder of transformers and return the model. With `chat` the special tokens of our
    chats are added to the vocabulary.

    FileNotFoundError for a missing folder or file; ValueError names a shape, tensor or tokenizer that is not supported.
    """
    refuse_existing(out)
    values = read_json(folder / "config.json")
    if values.get("model_type") not in MODEL_TYPES:
        kind = values.get("model_type")
        why = FOREIGN.get(str(kind), "nutshell has no such model")
        raise ValueError(f"{folder}/config.json has model_type {kind!r}: {why}. Accepted: {', '.join(MODEL_TYPES)}.")
    tok = read_tokenizer(folder)
    try:
        config = _config(values, tok)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder}/config.json is of no shape of nutshell's: {error}") from None
    weights = read_weights(folder)
    if config.architecture == "gpt2":
        try:
            weights = weights_from_gpt2(weights, config.depth)
        except KeyError as error:
            raise ValueError(f"{folder} has no tensor for {error.args[0]}, which its config.json asks for.") from None
    if values["model_type"] == "nanochat":
        weights = weights_from_nanochat(weights)
    return save(out, config, weights, tok, source=str(folder), chat=chat)


def _config(values: dict[str, Any], tok: Tokenizer) -> ModelConfig:
    if values["model_type"] == "gpt2":
        return config_from_gpt2(values, tok.bos_id)
    if values["model_type"] == "nanochat":
        return config_from_nanochat(values, tok.bos_id)
    if values["model_type"] in ("qwen3", "llama"):
        return replace(config_from_json(values), bos_id=tok.bos_id)
    return ModelConfig(**{name: values[name] for name in ModelConfig.__dataclass_fields__ if name in values})


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. FileNotFoundError or ValueError says what is wrong with the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Give a folder that holds one.")
    return read_record(path, "Fetch it again.")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors by name, in their stored dtype."""
    index, names = folder / "model.safetensors.index.json", ["model.safetensors"]
    if index.is_file():
        files = read_json(index).get("weight_map")
        if not isinstance(files, dict):
            raise ValueError(f"{index} does not say which file has which tensor (weight_map). Fetch it again.")
        names = sorted({str(name) for name in files.values()})
    weights: dict[str, Tensor] = {}
    for path in (folder / name for name in names):
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist. Accepted: weights as safetensors, whole; a pickle (pytorch_model.bin) is not opened."
            )
        try:
            weights |= load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}. Fetch it again.") from None
    return weights


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read `tokenizer.json`, or GPT-2's older pair of files, whose special token is `<|endoftext|>`."""
    if (folder / "tokenizer.json").is_file() or not (folder / "vocab.json").is_file():
        return Tokenizer.load(folder)
    vocabulary, merges = read_json(folder / "vocab.json"), folder / "merges.txt"
    if not merges.is_file():
        raise FileNotFoundError(f"{merges} does not exist. Accepted: tokenizer.json, or vocab.json with merges.txt.")
    lines = merges.read_text(encoding="utf-8").splitlines()
    end = [{"id": id, "content": name, "special": True} for name, id in vocabulary.items() if name == "<|endoftext|>"]
    content = {
        "added_tokens": end,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [line for line in lines if line and line[:9] != "#version:"]},
    }
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
        return Tokenizer.load(scratch)


def save(
    out: Path, config: ModelConfig, weights: dict[str, Tensor], tok: Tokenizer, *, source: str, chat: bool = False
) -> Decoder:
    """Write the model folder `out` from tensors with our names, which are removed from `weights`.

    Rows beyond the tokenizer's vocabulary are padding and are dropped. With `chat` the tokens of our chats are appended, each
    as a copy of the token that begins a document; fine-tuning teaches them. ValueError names a tensor that is missing, unknown,
    or of another shape or dtype.
    """
    if tok.vocab_size > config.vocab_size:
        raise ValueError(
            f"the tokenizer of {source} has {tok.vocab_size} tokens, its weights are for {config.vocab_size}. "
            "Use the tokenizer that the model was trained with."
        )
    if config.depth > len(weights):
        raise ValueError(f"{source} has {len(weights)} tensors, too few for the {config.depth} layers of its configuration.")
    padded, known, begin = config.vocab_size, tok.vocab_size, tok.bos_id
    tok = tok.with_special_tokens() if chat else tok
    config = replace(config, vocab_size=tok.vocab_size, bos_id=tok.bos_id)
    model = build_model(config, initialize=False)
    if config.tied and (head := weights.pop("lm_head.weight", None)) is not None:
        embedding = "embedding.weight" if config.architecture == "gpt2" else "model.embed_tokens.weight"
        if embedding in weights and not torch.equal(head, weights[embedding]):
            raise ValueError(f"{source} has a head of its own, though its configuration says it is the embedding.")
    fitting = {}
    for name, expected in model.state_dict().items():
        if name not in weights:
            raise ValueError(f"{source} has no tensor for {name}, which its configuration asks for.")
        tensor, rows = weights.pop(name), name.startswith(BY_TOKEN)
        shape = (padded, *expected.shape[1:]) if rows else tuple(expected.shape)
        if tuple(tensor.shape) != shape or tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(
                f"{source} has {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)} for {name}. "
                f"Accepted: float32, float16 or bfloat16 {shape}."
            )
        if rows:
            tensor = torch.cat([tensor[:known], tensor[begin].expand(tok.vocab_size - known, -1)])
        fitting[name] = tensor.float().contiguous()
    if weights:
        raise ValueError(f"{source} has the tensor {min(weights)}, for which nutshell's {config.architecture} has no place.")
    model.load_state_dict(fitting, assign=True)
    with new_folder(out) as folder:
        write_files(folder, take_snapshot(model, tok, meta={"imported": source}))
    return model.eval()
