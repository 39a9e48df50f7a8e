"""Several corpora as one: each block holds a slice of every corpus, so that all of training sees the mixture.

One pass over the mixture reads corpus i `passes[i]` times. Of its B blocks, block b holds from each corpus the documents between
b/B and (b + 1)/B of all its passes. Nothing is drawn at random, so a block is the same text at every start.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Literal

import pyarrow.parquet

from nutshell.data.shards import FORMAT, MANIFEST, Shards, open_shards, read_manifest
from nutshell.files import write_json


class MixedShards:
    """Shards of several corpora by name, read as one. `passes`: how often one pass over the mixture reads each.

    The validation blocks are those of the first corpus, then of the second, and so on.
    """

    def __init__(self, folder: Path, parts: Mapping[str, Shards], passes: Mapping[str, float]):
        self.folder, self.parts, self.passes = folder, dict(parts), dict(passes)
        # Where each block of a corpus begins, counted in documents, and at the end how many there are.
        self._edges = {name: list(accumulate(shards.rows("train"), initial=0)) for name, shards in parts.items()}
        self._val = [(name, block) for name, shards in parts.items() for block in range(shards.blocks("val"))]

    @property
    def problems(self) -> list[str]:
        """What was skipped in all corpora, and why."""
        return [problem for shards in self.parts.values() for problem in shards.problems]

    def blocks(self, split: str) -> int:
        """As many that a block holds at most about one block of each corpus."""
        most = max(passes * self.parts[name].blocks("train") for name, passes in self.passes.items())
        return len(self._val) if split == "val" else math.ceil(most)

    def block_name(self, split: str, block: int) -> str:
        if split == "val":
            name, own = self._val[block]
            return f"{name} {self.parts[name].block_name(split, own)}"
        return ", ".join(
            f"{name} {self.parts[name].block_name(split, own)}" for name in self.parts for own, _, _ in self._slices(name, block)
        )

    def read(self, split: str, block: int) -> list[str]:
        """The documents of a block, corpus after corpus (packing changes their order)."""
        if split == "val":
            name, own = self._val[block]
            return self.parts[name].read(split, own)
        documents = []
        for name, shards in self.parts.items():
            for own, start, end in self._slices(name, block):
                documents += shards.read(split, own)[start:end]
        return documents

    def _slices(self, name: str, block: int) -> list[tuple[int, int, int]]:
        """What a corpus gives to a block: (its own block, first document, one past the last)."""
        edges, blocks = self._edges[name], self.blocks("train")
        position, end = (int(self.passes[name] * edges[-1] * edge / blocks) for edge in (block, block + 1))
        slices = []
        while position < end:
            offset = position % edges[-1]
            own = bisect_right(edges, offset) - 1
            taken = min(end - position, edges[own + 1] - offset)
            slices.append((own, offset - edges[own], offset - edges[own] + taken))
            position += taken
        return slices

    def fingerprint(self, split: str) -> str:
        parts = [[name, shards.fingerprint(split), self.passes[name]] for name, shards in self.parts.items()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def passes_of(amounts: Mapping[str, float], characters: Mapping[str, float]) -> dict[str, float]:
    """How often one pass over a mixture reads each corpus, at least once, so that the text has the shares `amounts`."""
    ratios = {name: amounts[name] / max(1.0, characters[name]) for name in amounts}
    return {name: ratio / min(ratios.values()) for name, ratio in ratios.items()}


def write_mixture(folder: Path, parts: Mapping[str, Path], amounts: Mapping[str, float], *, repeats: bool) -> None:
    """Write a manifest that makes one corpus of several folders of shards. Folders below `folder` are named relative to it.

    `amounts` are shares of the text, or with `repeats` how often each corpus is read. ValueError if `folder` holds shards itself.
    """
    if any(folder.glob("*.parquet")):
        raise ValueError(f"{folder} holds shards of other data; delete it or give another --out")
    characters = {name: characters_of(path) for name, path in parts.items()}
    if repeats:
        amounts = {name: times * characters[name] for name, times in amounts.items()}
    passes = passes_of(amounts, characters)
    manifests = {name: read_manifest(path) for name, path in parts.items()}
    mixture = [
        {"name": name, "folder": str(path.relative_to(folder) if folder in path.parents else path), "passes": passes[name],
         "characters": characters[name], "documents": manifests[name].get("documents", {}).get("train", 0)}
        for name, path in parts.items()
    ]  # fmt: skip
    files = {f"{name}/{file}": facts for name, found in manifests.items() for file, facts in found.get("files", {}).items()}
    write_json(folder / MANIFEST, {"format": FORMAT, "mixture": mixture, "files": files})


def open_corpus(folder: Path | str, *, on_error: Literal["stop", "skip"] = "stop") -> Shards | MixedShards:
    """A folder of shards, or several of them that a manifest mixes; see `open_shards`."""
    folder = Path(folder)
    mixture = read_manifest(folder).get("mixture")
    if not mixture:
        return open_shards(folder, on_error=on_error)
    parts = {part["name"]: open_shards(folder / part["folder"], on_error=on_error) for part in mixture}
    return MixedShards(folder, parts, {part["name"]: part["passes"] for part in mixture})


def characters_of(folder: Path) -> float:
    """Characters of the training text; for shards without a manifest their bytes before compression."""
    known = read_manifest(folder).get("characters", {}).get("train")
    if known:
        return known
    files = (pyarrow.parquet.read_metadata(file) for file in folder.glob("train-*.parquet"))
    return sum(metadata.row_group(group).total_byte_size for metadata in files for group in range(metadata.num_row_groups))
