"""The files `tokenizer.json` and `tokenizer_config.json` that the `tokenizers` and `transformers` libraries open."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from nutshell.tokenizer.chat import CHAT_TEMPLATE


@cache
def alphabet() -> tuple[str, ...]:
    """The printable character that stands for each byte in such files (GPT-2's `bytes_to_unicode`): itself where it is
    visible Latin-1, else the next free one from U+0100 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    characters = {byte: chr(byte) for byte in visible}
    hidden = [byte for byte in range(256) if byte not in characters]
    characters.update({byte: chr(256 + index) for index, byte in enumerate(hidden)})
    return tuple(characters[byte] for byte in range(256))


def dump(tokens: Sequence[bytes], merges: Sequence[tuple[int, int]], pattern: str, special_tokens: Mapping[str, int]) -> bytes:
    """Content of `tokenizer.json`, the same bytes for the same tokenizer."""
    table = dict(enumerate(alphabet()))
    names = [token.decode("latin-1").translate(table) for token in tokens]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id, **_added(name)} for name, id in special_tokens.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {name: id for id, name in enumerate(names)},
            "merges": [f"{names[left]} {names[right]}" for left, right in merges],
        },
    }
    return (json.dumps(content, ensure_ascii=False, indent=0) + "\n").encode()


def _added(name: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"content": name, **flags}


def dump_config(special_tokens: Mapping[str, int]) -> bytes:
    """Content of `tokenizer_config.json`. A reply ends with `<|assistant_end|>`, so that is the end-of-sequence token."""
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": "<|assistant_end|>",
        "additional_special_tokens": list(special_tokens),
        "added_tokens_decoder": {str(id): _added(name) for name, id in special_tokens.items()},
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000,
        "chat_template": CHAT_TEMPLATE,
    }
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()


def load(content: bytes, source: str, special_tokens: Sequence[str]) -> tuple[list[tuple[int, int]], str]:
    """Merges and pattern of a `tokenizer.json` that `dump` wrote; `source` names it in errors."""

    def refuse(reason: str) -> ValueError:
        return ValueError(f"{source}: {reason}; supported are the tokenizer.json files that nutshell saves")

    try:
        root = json.loads(content)
        model, vocabulary = root["model"], root["model"]["vocab"]
        splits = [part["pattern"]["Regex"] for part in root["pre_tokenizer"]["pretokenizers"] if part["type"] == "Split"]
        added = {token["content"]: token["id"] for token in root["added_tokens"]}
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise refuse(f"not such a file ({type(error).__name__}: {error})") from None
    if model.get("type") != "BPE" or len(splits) != 1:
        raise refuse("not byte-level BPE with one split pattern")
    names = [*alphabet()]
    try:
        names += [left + right for left, right in pairs]
        merges = [(vocabulary[left], vocabulary[right]) for left, right in pairs]
    except (KeyError, ValueError, TypeError) as error:
        raise refuse(f"a merge does not fit the vocabulary ({type(error).__name__}: {error})") from None
    if vocabulary != {name: id for id, name in enumerate(names)}:
        raise refuse("the ids are not those of the 256 bytes followed by the merges in order")
    if added != {name: len(names) + index for index, name in enumerate(special_tokens)}:
        raise refuse(f"the special tokens are not {', '.join(special_tokens)} at the end of the vocabulary")
    return merges, splits[0]
