"""Causal language models of transformers, opened so that they can be scored like ours (`pip install transformers`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


def is_foreign(folder: Path) -> bool:
    """Whether a folder is a model of transformers that nutshell has not written."""
    return (folder / "config.json").is_file() and not (folder / "manifest.json").exists()


class OtherModel:
    """What `score` asks of a model. Its hidden states are its logits: heads differ in scales and caps, so theirs does it all."""

    def __init__(self, model: Any) -> None:
        config = model.config.get_text_config()
        # GPT-2's learned positions end here, and rotary ones beyond it are untrained.
        context = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2048
        self.model = model.eval().requires_grad_(False)
        self.config = SimpleNamespace(context=context, vocab_size=config.vocab_size)

    def parameters(self) -> Iterator[Tensor]:
        return self.model.parameters()

    def hidden_states(self, ids: Tensor) -> Tensor:
        """Logits (B, T, V). Padding stands on the right, where causal attention never looks."""
        return self.model(input_ids=ids, use_cache=False).logits

    def head(self, hidden: Tensor) -> Tensor:
        return hidden


class OtherTokenizer:
    """What prompts ask of a tokenizer."""

    def __init__(self, tok: Any) -> None:
        self.tok = tok
        ids = (tok.bos_token_id, tok.eos_token_id, 0)
        self.bos_id: int = next(id for id in ids if id is not None)

    def encode(self, text: str) -> list[int]:
        return list(self.tok.encode(text, add_special_tokens=False))

    def chat_prompt(self, messages: list[dict[str, Any]]) -> list[int]:
        """Ids up to where the reply begins: by the model's template, or as a plain transcript for one that has none."""
        turns = [{"role": m["role"], "content": plain(m["content"])} for m in messages]
        if self.tok.chat_template:
            text = self.tok.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            return self.encode(text)
        names = {"system": "", "user": "Question: ", "assistant": "Answer: "}
        text = "\n".join(names[turn["role"]] + turn["content"] for turn in turns)
        return [self.bos_id, *self.encode(f"{text}\nAnswer:")]


def plain(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content if part["type"] == "text")


def load_foreign(folder: Path, device: torch.device, dtype: torch.dtype) -> tuple[OtherModel, OtherTokenizer]:
    """The model and tokenizer of a folder. ValueError where transformers is missing or can't open it."""
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise ValueError(f"{folder} is a model of transformers, which is not installed: pip install transformers") from None
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
        tok = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # its exceptions are of many kinds
        raise ValueError(f"{folder} can't be opened by transformers: {error}") from error
    return OtherModel(model.to(device)), OtherTokenizer(tok)
