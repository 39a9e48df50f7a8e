"""A web page that contains a model: one HTML file with tokenizer, int8 weights and the code that runs them (`offline/`).

The page fetches nothing. Scripts and styles are inline, allowed by their hashes in a Content-Security-Policy that forbids
everything else, and the model runs in a Web Worker made from the page's own text. It opens from disk as well as over http.
"""

from __future__ import annotations

import base64
import glob
import hashlib
import json
import re
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from nutshell.checkpoint import load_model
from nutshell.files import sole_writer, write_text
from nutshell.infer.native import native_shape
from nutshell.infer.weights import named_weights
from nutshell.interop.hf_export import TEMPERATURE, TOP_K, card_facts
from nutshell.interop.output import refuse_existing, room_for
from nutshell.interop.quantize import int8_rows
from nutshell.model.config import ModelConfig
from nutshell.model.decoder import Decoder
from nutshell.tokenizer import Tokenizer

OFFLINE = Path(__file__).parent / "offline"
WEB = Path(__file__).parents[1] / "serve" / "web"
LARGEST = 30_000_000  # parameters: 42 MB of HTML, and 120 MB of memory for the weights in fp32
MATRICES = ("embedding", "value_embedding", "head", "qkv", "out", "up", "down", "gate")
"""Weights in int8; norms, scales and the small gates stay fp32."""
PAGE_MODULES = ("dom.js", "composer.js", "links.js", "blocks.js", "inline.js", "markdown.js", "parts.js", "chat.js")
WORKER_MODULES = ("calculator.js", "tokenizer.js", "model.js", "reply.js", "worker.js")
STYLES = ("layout.css", "messages.css", "offline.css")
PATTERNS = ("nanochat", "gpt2", "cl100k", "o200k", "qwen2")


def export_html(model: Path, out: Path) -> Path:
    """Write the page `out`. ValueError for a model that a page cannot hold or run, FileExistsError if `out` exists."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{out} is no name of a page. Accepted: a name that ends with .html, so that a browser opens it.")
    refuse_existing(out)
    decoder, tok, manifest = load_model(model)
    _check(decoder, tok, model)
    name, facts = card_facts(decoder, tok, manifest["meta"], model)
    content = page(decoder, tok, json.loads((model / "tokenizer.json").read_text(encoding="utf-8")), name, facts)
    out.parent.mkdir(parents=True, exist_ok=True)
    with room_for(out), sole_writer(out):
        for left in out.parent.glob(f".{glob.escape(out.name)}.*.tmp"):
            left.unlink()  # by a process that was killed while it wrote
        write_text(out, content)
    return out


def _check(decoder: Decoder, tok: Tokenizer, model: Path) -> None:
    config, parameters = decoder.config, sum(p.numel() for p in decoder.parameters())
    if config.architecture == "gpt2" or not config.qk_norm:
        shape = "gpt2" if config.architecture == "gpt2" else "Llama's shape"
        raise ValueError(f"{model} is of {shape}, which the page does not know. Accepted: speed, portable with qk_norm.")
    if parameters > LARGEST:
        raise ValueError(
            f"{model} has {parameters / 1e6:.0f}M parameters. Accepted: up to {LARGEST / 1e6:.0f}M, as a page computes "
            "without a GPU. Use `nutshell serve`, or `nutshell export gguf`."
        )
    if "<|assistant_end|>" not in tok.special_tokens:
        raise ValueError(f"{model} has a tokenizer without the special tokens of chats. Accepted: a chat model; train with sft.")


def page(decoder: Decoder, tok: Tokenizer, tokenizer: dict[str, Any], name: str, facts: str) -> str:
    """The HTML for a model; `tokenizer` is the content of its `tokenizer.json`."""
    weights, tensors, floats = pack(decoder, tok.vocab_size)
    model = {
        "tensors": tensors, "floats": floats, "shape": shape_of(decoder, tok.vocab_size),
        "tokenizer": tokenizer, "pattern": javascript_pattern(tok), "temperature": TEMPERATURE, "topK": TOP_K,
    }  # fmt: skip
    style, script = "".join(map(_read, STYLES)), bundle(PAGE_MODULES)
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; worker-src blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    icon = base64.b64encode(_read("icon.svg").encode()).decode()
    parts = {
        "policy": policy, "name": escape(name), "facts": escape(facts), "icon": f"data:image/svg+xml;base64,{icon}",
        "style": style, "script": script, "worker": bundle(WORKER_MODULES),
        "model": json.dumps(model, ensure_ascii=False).replace("<", "\\u003c"),
        "weights": base64.b64encode(weights).decode(),
    }  # fmt: skip
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _read("page.html"))


def shape_of(decoder: Decoder, vocab_size: int) -> dict[str, Any]:
    """The shape that native decoding uses, and what the page computes itself: rotations, and the epsilon of norms."""
    config: ModelConfig = decoder.config
    sign = 1 if config.architecture == "speed" else -1  # see `Qwen3.make_rotary_tables`
    rotary = {"rotary_base": config.rotary_base, "rotary_sign": sign}
    return {**native_shape(decoder.config, vocab_size), **rotary, "eps": config.norm_eps}


def pack(decoder: Decoder, vocab_size: int) -> tuple[bytes, list[tuple[str, int, int]], int]:
    """All weights as bytes; (name, rows, columns) of each, with 0 columns for an fp32 vector; and the number of fp32 values.

    The fp32 values come first (vectors and the scales of matrices, in order), then the int8 values. Little-endian.
    """
    floats, steps, tensors = [], [], []
    found = {name: weight.detach().float().numpy() for name, weight in decoder.named_parameters()}
    for name, parts in named_weights(decoder.config, found, vocab_size).items():
        if name in ("cos", "sin") or (name == "head" and decoder.config.tied):
            continue
        weight = np.concatenate(parts)
        matrix = name.split(".")[-1] in MATRICES
        if matrix:
            scale, numbers = int8_rows(weight)
            floats.append(scale.ravel())
            steps.append(numbers.tobytes())
        else:
            floats.append(weight.ravel())
        tensors.append((name, len(floats[-1]), weight.shape[1] if matrix else 0))
    numbers = np.concatenate(floats).astype("<f4")
    return numbers.tobytes() + b"".join(steps), tensors, len(numbers)


def javascript_pattern(tok: Tokenizer) -> str:
    r"""The tokenizer's split pattern for JavaScript with the flag u. There, `\s` is not Unicode's white space, and there are no
    possessive repeats (greedy ones match the same in these patterns) nor, in older browsers, `(?i:...)`."""
    if tok.kind == "char":
        return tok.pattern
    if tok.pattern not in [Tokenizer([], name).pattern for name in PATTERNS]:
        raise ValueError(
            f"the tokenizer cuts text by the pattern {tok.pattern!r:.60}, which the page does not know. "
            f"Accepted: {', '.join(PATTERNS)}."
        )
    cases = {letter: letter + letter.upper() for letter in "dmtlver"} | {"s": "sSſ"}

    def both_cases(found: re.Match[str]) -> str:
        inside = re.sub(r"\[\w+\]|\w", lambda part: f"[{''.join(cases[c] for c in part[0].strip('[]'))}]", found[1])
        return f"(?:{inside})"

    pattern = re.sub(r"\(\?i:([^)]*)\)", both_cases, tok.pattern)
    pattern = re.sub(r"([?+*]|\{[\d,]+\})\+", r"\1", pattern).replace(r"\z", "$")
    return pattern.replace(r"\s", r"\p{White_Space}").replace(r"\S", r"\P{White_Space}")


def bundle(names: tuple[str, ...]) -> str:
    """Join modules into one script. Each becomes a function that returns its exports, and comes after those it imports.

    >>> bundle(("dom.js",)).splitlines()[0]
    '"use strict";'
    """
    script = ['"use strict";']
    for name in names:
        source, exported = _read(name), []
        source = re.sub(
            r'^import \{([^}]*)\} from "\./(\w+)\.js";$',
            lambda found: f"const {{{found[1].replace(' as ', ': ')}}} = module_{found[2]};", source, flags=re.MULTILINE,
        )  # fmt: skip
        exported = re.findall(r"^export (?:async )?(?:function\*?|class|const) ([\w$]+)", source, flags=re.MULTILINE)
        source = re.sub(r"^export ", "", source, flags=re.MULTILINE)
        script.append(f"const module_{name.removesuffix('.js')} = (() => {{\n{source}return {{ {', '.join(exported)} }};\n}})();")
    return "\n".join(script) + "\n"


def _read(name: str) -> str:
    """Read one of the page's own files, or one that it shares with the server's page."""
    folder = OFFLINE if (OFFLINE / name).exists() else WEB
    return (folder / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
