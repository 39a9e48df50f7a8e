"""What can be served of a folder: the models of a run, of a stage, or one."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from nutshell.files import STAGES
from nutshell.model_folder import checkpoints, read_manifest

Key = tuple[Path, str]
"""What is in memory: a folder, and which model lay in it."""


@dataclass(frozen=True)
class Offer:
    """A model that can be asked for."""

    id: str
    folder: Path
    stage: str = ""
    step: int | None = None
    context: int | None = None
    created: int = 0
    digest: str = ""
    """Of the manifest: another model may be put in the same folder."""

    @property
    def key(self) -> Key:
        return self.folder, self.digest

    @property
    def kind(self) -> str:
        """A base model goes on with a text, a chat model answers."""
        return "base" if self.stage == "pretrain" else "chat"


def run_of(folder: str | Path, mark: str) -> Path:
    """The run of a run, a stage or a step: the nearest folder upwards that holds the file `mark`, else the folder itself."""
    path = Path(folder).resolve()
    return next((place for place in (path, *path.parents) if (place / mark).is_file()), path)


def shown_name(folder: Path) -> str:
    """The folder's name as text that JSON and addresses can hold, also where its bytes are no UTF-8."""
    return os.fsencode(folder.name).decode("utf-8", "replace")


def run_name(folder: str | Path) -> str:
    """A run folder's own name, so that `runs/demo/sft/step-000100` and `runs/demo` are both "demo"."""
    return shown_name(run_of(folder, "plan.json"))


def offers(folder: str | Path) -> list[Offer]:
    """What the folder of a run, a stage or a model offers: the default first, then each stage, then each step.

    Empty where no checkpoint is complete.
    """
    root, name = Path(folder), run_name(folder)
    if read_manifest(root) is not None:
        return [_offer(name, root)]
    stages = [path for stage in STAGES if (path := root / stage).is_dir()] or [root]
    kept = {path: [_offer(f"{name}/{path.name}/{step.name}", step) for _, step in checkpoints(path)] for path in stages}
    each = [offer for steps in kept.values() for offer in steps]
    newest = [replace(steps[-1], id=f"{name}/{path.name}") for path, steps in kept.items() if steps and path != root]
    return [*(replace(last, id=name) for last in each[-1:]), *newest, *each]


def _offer(id: str, folder: Path) -> Offer:
    manifest = read_manifest(folder) or {}
    meta = manifest.get("meta", {})
    try:
        context = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("context")
        created = int((folder / "manifest.json").stat().st_mtime)
    except (OSError, ValueError, AttributeError):  # replaced meanwhile, or damaged: loading it says so
        context, created = None, 0
    return Offer(id, folder, meta.get("stage", ""), meta.get("step"), context, created, manifest.get("sha256") or "")
