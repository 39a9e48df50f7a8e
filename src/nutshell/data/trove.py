"""Shards from a datatrove pipeline, for text that needs many machines: its readers, filters and executors (processes, Slurm, Ray)
come first, our shuffle last. The shards are the same as from one machine, whatever the number of tasks.

    from datatrove.executor import LocalPipelineExecutor
    LocalPipelineExecutor([JsonlReader("crawl"), LanguageFilter(), Scatter(folder="parts", buckets=64)], tasks=32).run()
    gather_parts("parts", "shards")     # on one machine, once all tasks are done
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nutshell.data.shards import build_shards, refuse_filled
from nutshell.data.shuffle import Layout, scatter, shards_of
from nutshell.files import write_text

TASKS = "tasks"


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """The last step of a pipeline: pass 1 of the shuffle, in each task for its documents. Datatrove calls it like its own
    steps."""

    folder: str
    """Shared by all tasks."""
    buckets: int
    """Parts of the text, one of which the second pass holds in memory: one for each 128 MB."""
    seed: int = 0

    def __call__(self, documents: Iterable[Any] | None, rank: int = 0, world_size: int = 1) -> tuple[()]:
        """Write the text of datatrove's documents; a task that is done already stays as it is."""
        parts = Path(self.folder)
        parts.mkdir(parents=True, exist_ok=True)
        write_text(parts / f"{TASKS}-{rank:05d}", str(world_size))
        texts = (document.text for document in documents or () if document.text and not document.text.isspace())
        scatter(texts, parts, f"train-{rank:05d}", self.buckets, self.seed)
        return ()


def gather_parts(parts: Path | str, out: Path | str, **options: Any) -> Path:
    """Make shards in `out` from what all tasks wrote. `options` are those of `Layout`, with the seed of `Scatter`.

    ValueError if tasks are not done, or had different numbers of buckets.
    """
    parts, out, layout = Path(parts), Path(out), Layout(**options)
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(parts.glob("train-?????.json"))]
    tasks = {int(path.read_text(encoding="utf-8")) for path in parts.glob(f"{TASKS}-*")}
    if len(tasks) != 1 or len(records) != max(tasks):
        raise ValueError(f"{parts} has {len(records)} finished tasks of {sorted(tasks) or 0}. Run the pipeline to its end first.")
    if len(buckets := {len(record["documents"]) for record in records}) != 1:
        raise ValueError(f"the tasks of {parts} had {sorted(buckets)} buckets; accepted: one number for all.")
    refuse_filled(out)

    def gather(folder: Path) -> dict[str, Any]:
        for path in parts.glob("train-*.arrow"):
            (folder / "parts" / path.name).symlink_to(path.absolute())
        return shards_of(folder, records, buckets.pop(), layout, os.cpu_count() or 1)

    build_shards(gather, out, {"datatrove": str(parts)}, layout, resume=False)
    return out
