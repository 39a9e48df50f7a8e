"""The files `tokenizer.json` and `tokenizer_config.json` that the `tokenizers` and `transformers` libraries open."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from nutshell.tokenizer.chat import CHAT_TEMPLATE

BEGINNINGS = ("<|bos|>", "<|begin_of_text|>", "<|endoftext|>")
"""What tokenizers call the token that begins a document: ours, Llama 3's, GPT-2's."""
ENDS = ("<|assistant_end|>", "<|end_of_text|>", "<|endoftext|>")
REPLY_ENDS = ("<|assistant_end|>", "<|user_start|>", "<|end_of_text|>")
"""A model that starts the user's turn has ended its own."""


@cache
def alphabet() -> tuple[str, ...]:
    """The printable character that stands for each byte in such files (GPT-2's `bytes_to_unicode`): itself where it is
    visible Latin-1, else the next free one from U+0100 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    characters = {byte: chr(byte) for byte in visible}
    hidden = [byte for byte in range(256) if byte not in characters]
    characters.update({byte: chr(256 + index) for index, byte in enumerate(hidden)})
    return tuple(characters[byte] for byte in range(256))


def dump(
    tokens: Sequence[bytes],
    merges: Sequence[tuple[int, int]],
    pattern: str,
    special_tokens: Mapping[str, int],
    *,
    ignore_merges: bool = False,
    nfc: bool = False,
) -> str:
    """Content of `tokenizer.json`, the same for the same tokenizer.

    `tokens` are the bytes by id, empty where an id stands for no text; `merges` come by rank. Merges that make the same
    token may share a rank in a rank file, but not here. Their order changes no id: of all pairs that could make a
    token, one and the same ever meets, the one that merging the token's own bytes ends with.
    """
    table = dict(enumerate(alphabet()))
    names = [token.decode("latin-1").translate(table) for token in tokens]
    vocabulary = {name: id for id, name in enumerate(names) if name}
    twice = next((name for name in special_tokens if name in vocabulary), None)
    if twice is not None:
        raise ValueError(f"token {vocabulary[twice]} is spelled like the special token {twice!r}: a file can't tell them apart")
    # `tokenizers` numbers added tokens on from the size of the vocabulary, except those that stand in it.
    if sorted(special_tokens.values()) != [len(vocabulary) + index for index in range(len(special_tokens))]:
        vocabulary = dict(sorted({**vocabulary, **special_tokens}.items(), key=lambda entry: entry[1]))
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": _portable(pattern)}, "behavior": "Isolated", "invert": False}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id, **added_token(name)} for name, id in special_tokens.items()],
        "normalizer": {"type": "NFC"} if nfc else None,
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
            "ignore_merges": ignore_merges,
            "vocab": vocabulary,
            "merges": [f"{names[left]} {names[right]}" for left, right in merges],
        },
    }
    return json.dumps(content, ensure_ascii=False, indent=0) + "\n"


def _portable(pattern: str) -> str:
    """The pattern as Oniguruma reads it, which `tokenizers` uses: there `^` and `$` stand at the ends of lines, and a `+`
    after `{1,3}` repeats instead of making it possessive."""
    depth = 0

    def spell(found: re.Match[str]) -> str:
        nonlocal depth
        part = found[0]
        depth = max(0, depth + {"[": 1, "]": -1}.get(part, 0))
        if depth:
            return part
        if part.endswith("}+"):
            raise ValueError(
                f"the split pattern {pattern!r} holds {part!r}, which the readers of tokenizer.json take for another "
                "thing; write (?>...) around what it repeats and leave out the +"
            )
        return {"^": r"\A", "$": r"\z"}.get(part, part)

    return re.sub(r"\\[pPx]\{[^}]*\}|\\.|\{[\d,]*\}\+|[\[\]^$]", spell, pattern)


def added_token(name: str) -> dict[str, Any]:
    """How a special token stands in such files."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"content": name, **flags}


def dump_config(special_tokens: Mapping[str, int]) -> str:
    """Content of `tokenizer_config.json`. A reply ends with `<|assistant_end|>`, so that is the end-of-sequence token;
    tokenizers without it have one of `ENDS`, or none. The chat template needs all tokens that it spells."""
    spelled = re.findall(r"<\|\w+\|>", CHAT_TEMPLATE)
    ends = {
        key: next((name for name in names if name in special_tokens), None)
        for key, names in {"bos_token": BEGINNINGS, "eos_token": ENDS}.items()
    }
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{key: name for key, name in ends.items() if name},
        "additional_special_tokens": list(special_tokens),
        "added_tokens_decoder": {str(id): added_token(name) for name, id in special_tokens.items()},
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000,
        **({"chat_template": CHAT_TEMPLATE} if all(name in special_tokens for name in spelled) else {}),
    }
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"
