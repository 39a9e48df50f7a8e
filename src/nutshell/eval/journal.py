"""What an interrupted evaluation has scored already: the same command goes on behind it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from nutshell.eval.score import Pair, Score


class Journal:
    """A file with a line for each lot of pairs that was scored, known by these and by the model's weights.

    Of several ranks rank 0 alone writes it, and what it has read counts: `score_groups` tells the others.
    """

    def __init__(self, path: Path, model: Any) -> None:
        self.path, self.model = path, fingerprint(model)
        self.known: dict[str, list[Any]] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            with suppress(ValueError):  # the last line may be half of one
                key, scores = json.loads(line)
                self.known[key] = scores

    def key(self, pairs: Sequence[Pair]) -> str:
        ids = repr([(list(prefix), list(continuation)) for prefix, continuation in pairs])
        return hashlib.blake2b((self.model + ids).encode(), digest_size=16).hexdigest()

    def note(self, key: str, scores: Sequence[Score]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps([key, scores]) + "\n")


def fingerprint(model: Any) -> str:
    """A hash of the weights as they compute."""
    digest = hashlib.blake2b(digest_size=16)
    for parameter in model.parameters():
        digest.update(f"{parameter.dtype} {tuple(parameter.shape)} ".encode())
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
