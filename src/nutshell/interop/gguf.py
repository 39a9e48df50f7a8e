"""GGUF: one file with weights, tokenizer and chat template, for llama.cpp, Ollama and LM Studio.

The layout (ggml's docs/gguf.md, version 3, little-endian): magic, version, number of tensors and of metadata; metadata as key,
type, value; for each tensor name, sizes (fastest first), type, offset; then the tensors, each at a multiple of 32 bytes.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from nutshell.checkpoint import load_model
from nutshell.interop.hf_export import TEMPERATURE, TOP_K, card_facts
from nutshell.interop.output import new_folder
from nutshell.interop.quantize import BLOCK, q4_0, q8_0
from nutshell.model.config import ModelConfig
from nutshell.model.gpt2 import GPT2, LAYER_NORM_EPS
from nutshell.tokenizer import Tokenizer
from nutshell.tokenizer.huggingface import REPLY_ENDS

ALIGNMENT = 32
F32, F16, Q4_0, Q8_0 = 0, 1, 2, 8
"""ggml's numbers of tensor types."""
ENCODERS: dict[int, tuple[int, Callable[[np.ndarray], np.ndarray]]] = {
    F32: (128, lambda weights: weights.astype("<f4")),
    F16: (64, lambda weights: weights.astype("<f2")),
    Q8_0: (34, q8_0),
    Q4_0: (18, q4_0),
}
"""For each type the bytes of 32 weights, and the function that encodes fp32 weights."""
TYPES = {"f32": (F32, F32, 0), "f16": (F16, F16, 1), "q8_0": (Q8_0, Q8_0, 7), "q4_0": (Q4_0, Q8_0, 2)}
"""Type of the matrices, type of embedding and head, and the number for `general.file_type`. Vectors are always f32."""
CONTROL, NORMAL, UNUSED = 3, 1, 5  # kinds of tokens
TENSORS = {
    r"model\.embed_tokens|embedding": "token_embd",
    r"positions": "position_embd",
    r"model\.norm|final_norm": "output_norm",
    r"lm_head": "output",
    r"model\.layers\.(\d+)\.input_layernorm": r"blk.\1.attn_norm",
    r"model\.layers\.(\d+)\.post_attention_layernorm": r"blk.\1.ffn_norm",
    r"model\.layers\.(\d+)\.self_attn\.o_proj": r"blk.\1.attn_output",
    r"model\.layers\.(\d+)\.self_attn\.([qkv])_proj": r"blk.\1.attn_\2",
    r"model\.layers\.(\d+)\.self_attn\.([qk]_norm)": r"blk.\1.attn_\2",
    r"model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj": r"blk.\1.ffn_\2",
    r"blocks\.(\d+)\.attention_norm": r"blk.\1.attn_norm",
    r"blocks\.(\d+)\.mlp_norm": r"blk.\1.ffn_norm",
    r"blocks\.(\d+)\.attention\.qkv": r"blk.\1.attn_qkv",
    r"blocks\.(\d+)\.attention\.out": r"blk.\1.attn_output",
    r"blocks\.(\d+)\.mlp\.(up|down)": r"blk.\1.ffn_\2",
}
"""Our names to ggml's, for portable and gpt2, without `.weight` or `.bias`."""
ENDS = ("model.embed_tokens", "lm_head", "embedding")
TEMPLATE = """\
{{- $system := .System }}
{{- range .Messages }}
{{- if eq .Role "user" }}<|user_start|>{{ if $system }}{{ $system }}

{{ end }}{{ .Content }}<|user_end|>{{ $system = "" }}
{{- else if eq .Role "assistant" }}<|assistant_start|>{{ .Content }}<|assistant_end|>
{{- end }}
{{- end }}<|assistant_start|>"""
"""The chat format as an Ollama template (Go's text/template). Without `<|bos|>`: the runner adds it, as the file tells it to."""


def export_gguf(model: Path, out: Path, kind: str) -> Path:
    """Write the folder `out` with `model-KIND.gguf` and a `Modelfile` for `ollama create`. Returns the path of the GGUF file.

    ValueError for an architecture, a tokenizer or a type that the format does not have.
    """
    if kind not in TYPES:
        raise ValueError(f"--type is {kind!r}. Accepted: {', '.join(TYPES)}.")
    decoder, tok, manifest = load_model(model)
    config, meta = decoder.config, manifest["meta"]
    if config.architecture == "speed":
        raise ValueError(
            f"{model} is of the architecture speed, which readers of GGUF do not know. Accepted: portable, gpt2. "
            "Train with --architecture portable, or use `nutshell export hf`."
        )
    metadata = {**_shape(config, kind, card_facts(decoder, tok, meta, model)[0]), **_tokenizer(tok, model)}
    weights = with_joined_attention(decoder) if isinstance(decoder, GPT2) else decoder.state_dict()
    if not config.qk_norm:
        weights = with_pairs_side_by_side(weights, config.head_dim)
    tensors = [(ggml_name(name), _type_of(name, tuple(w.shape), kind), w.numpy()) for name, w in weights.items()]
    with new_folder(out) as folder:
        with open(folder / f"model-{kind}.gguf", "wb") as file:
            write_gguf(file, metadata, tensors)
        chats = "<|assistant_end|>" in tok.special_tokens and meta.get("stage") != "pretrain"
        stops = [name for name in REPLY_ENDS if chats and name in tok.special_tokens]
        (folder / "Modelfile").write_text(modelfile(f"model-{kind}.gguf", config.context, stops), encoding="utf-8")
    return out / f"model-{kind}.gguf"


def with_joined_attention(model: GPT2) -> dict[str, Tensor]:
    """The tensors of a GPT-2 with queries, keys and values joined into one, as ggml has them."""
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not re.search(r"\.attention\.[qkv]\.", name)}
    for layer, block in enumerate(model.blocks):
        linears = (block.attention.q, block.attention.k, block.attention.v)
        tensors[f"blocks.{layer}.attention.qkv.weight"] = torch.cat([linear.weight.detach() for linear in linears])
        tensors[f"blocks.{layer}.attention.qkv.bias"] = torch.cat([linear.bias.detach() for linear in linears])
    return tensors


def with_pairs_side_by_side(weights: dict[str, Tensor], head_dim: int) -> dict[str, Tensor]:
    """Reorder query and key weights for ggml's `llama`, where two channels that rotate together are neighbours. In ours, and in
    ggml's `qwen3`, they are half a head apart."""
    pairs = {
        name: tensor.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)
        for name, tensor in weights.items()
        if name.endswith(("q_proj.weight", "k_proj.weight"))
    }
    return weights | pairs


def ggml_name(name: str) -> str:
    """The name of a tensor in ggml."""
    module, kind = name.rsplit(".", 1)
    pattern = next(pattern for pattern in TENSORS if re.fullmatch(pattern, module))
    return f"{re.sub(pattern, TENSORS[pattern], module)}.{kind}"


def _type_of(name: str, shape: tuple[int, ...], kind: str) -> int:
    matrices, ends, _ = TYPES[kind]
    if len(shape) == 1 or name.startswith("positions"):
        return F32
    wanted = ends if name.startswith(ENDS) else matrices
    return F16 if wanted in (Q4_0, Q8_0) and shape[-1] % BLOCK else wanted  # a row must be whole blocks


def _shape(config: ModelConfig, kind: str, name: str) -> dict[str, Any]:
    shape: dict[str, Any] = {
        "context_length": config.context,
        "embedding_length": config.width,
        "block_count": config.depth,
        "feed_forward_length": config.mlp_width,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
    }
    if config.architecture == "gpt2":
        theirs, shape = "gpt2", {**shape, "attention.layer_norm_epsilon": LAYER_NORM_EPS}
    else:
        heads = {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
        more = {"attention.layer_norm_rms_epsilon": config.norm_eps, "rope.freq_base": float(config.rotary_base)}
        theirs, shape = "qwen3" if config.qk_norm else "llama", {**shape, **heads, **more}
    general = {"architecture": theirs, "name": name, "file_type": TYPES[kind][2], "quantization_version": 2}
    return {**{f"general.{key}": v for key, v in general.items()}, **{f"{theirs}.{key}": v for key, v in shape.items()}}


def _tokenizer(tok: Tokenizer, folder: Path) -> dict[str, Any]:
    """Metadata of the tokenizer, from the folder's `tokenizer.json`, which spells tokens as GGUF does."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    names = {id: name for name, id in content["model"]["vocab"].items()}
    special = {id: name for name, id in tok.special_tokens.items()}
    ids = range(tok.vocab_size)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    metadata = {
        "model": "gpt2",  # byte-level BPE
        "pre": splitter(tok, content["model"]["ignore_merges"]),
        "tokens": [special.get(id) or names.get(id, f"[PAD{id}]") for id in ids],
        "token_type": [CONTROL if id in special else NORMAL if id in names else UNUSED for id in ids],
        "merges": content["model"]["merges"],
        "bos_token_id": tok.bos_id,
        "eos_token_id": tok.special_tokens.get(settings.get("eos_token", ""), tok.bos_id),
        "add_bos_token": True,
    }
    template = {"tokenizer.chat_template": settings["chat_template"]} if "chat_template" in settings else {}
    return {**{f"tokenizer.ggml.{key}": value for key, value in metadata.items()}, **template}


def splitter(tok: Tokenizer, whole_words_first: bool) -> str:
    """llama.cpp's name for the way this tokenizer cuts text before merging. Only `llama-bpe` looks up whole words before it
    merges.

    It has no name for nanochat's pattern, which cuts numbers into pairs of digits, and it implements o200k's and cl100k's a
    little differently, so some texts would get other ids. Those are refused.
    """
    gpt2, qwen2 = (Tokenizer([], name).pattern for name in ("gpt2", "qwen2"))
    llama3 = qwen2.replace(r"\p{N}|", r"\p{N}{1,3}|")
    smollm = gpt2.replace(r" ?\p{N}+", r"\p{N}").replace(r"(?!\S)", r"(?![^\s\p{N}])")  # single digits
    names = {(gpt2, False): "gpt-2", (qwen2, False): "qwen2", (llama3, True): "llama-bpe", (smollm, False): "smollm"}
    if (tok.pattern, whole_words_first) not in names:
        raise ValueError(
            f"the tokenizer cuts text by the pattern {tok.pattern!r:.60}{', whole words first' * whole_words_first}, which "
            "readers of GGUF have no name for. Accepted: qwen2, gpt2, SmolLM's, and Llama 3's with whole words first. "
            "Train one with `nutshell tokenizer train --pattern qwen2` (portable's default)."
        )
    return names[tok.pattern, whole_words_first]


def modelfile(file: str, context: int, stops: Sequence[str]) -> str:
    """The file for `ollama create NAME -f Modelfile`. `stops` end a reply; without them, for a model that has not learned chats,
    the text of the prompt is continued."""
    template = TEMPLATE if stops else "{{ .Prompt }}"  # without a template Ollama would use that of the GGUF file
    lines = [f"FROM ./{file}", f"PARAMETER num_ctx {context}", f"PARAMETER temperature {TEMPERATURE}", f"PARAMETER top_k {TOP_K}"]
    lines += [f'TEMPLATE """{template}"""', *(f'PARAMETER stop "{name}"' for name in stops)]
    return "\n".join(lines) + "\n"


def write_gguf(file: BinaryIO, metadata: dict[str, Any], tensors: Sequence[tuple[str, int, np.ndarray]]) -> None:
    """Write metadata and tensors (name, ggml type, fp32 weights), encoding one tensor at a time."""
    file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        file.write(_string(key) + _typed(value))
    offset = 0
    for name, kind, weights in tensors:
        shape = reversed(weights.shape)
        file.write(_string(name) + struct.pack(f"<I{weights.ndim}QIQ", weights.ndim, *shape, kind, offset))
        size = weights.size * ENCODERS[kind][0] // 32
        offset += size + -size % ALIGNMENT
    for _, kind, weights in tensors:
        file.write(bytes(-file.tell() % ALIGNMENT))
        file.write(ENCODERS[kind][1](np.ascontiguousarray(weights)).tobytes())
    file.write(bytes(-file.tell() % ALIGNMENT))


def _string(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _typed(value: Any) -> bytes:
    """A value with its type in front: 4 is uint32, 5 int32, 6 float32, 7 bool, 8 string, 9 an array."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    if value and isinstance(value[0], int):
        return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
    return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_string, value))
