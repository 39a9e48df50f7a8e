"""What an evaluation knows of each item: enough to compare two models item by item."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Record:
    """One item."""

    task: str
    index: int
    """In the task's file; of CORE in the shuffled one, as nanochat counts."""
    prompt: str
    """Hash of what was asked: two files with the same hash asked the same."""
    scores: list[float]
    """Log-probability of each choice per token; of CORE's language modeling the sum; of written replies their grades."""
    picked: Any
    """Number of the choice, the written replies, or None where nothing is picked."""
    right: bool | float
    """Of written replies the mean grade."""

    def line(self) -> str:
        """As JSON, in which NaN is null."""
        scores = [None if math.isnan(value) else value for value in self.scores]
        return json.dumps({**asdict(self), "scores": scores}, ensure_ascii=False)


def prompt_hash(prompt: Any) -> str:
    return hashlib.sha256(json.dumps(prompt, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()[:16]
