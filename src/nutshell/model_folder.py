"""Model folders without their tensors, and without torch: which are whole, which is the newest, whether one is damaged.

`checkpoint.py` writes them, and says what makes a folder whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from nutshell.files import STAGES, sha256
from nutshell.model.config import ModelConfig
from nutshell.model.config_file import config_from_json
from nutshell.tokenizer import Tokenizer

T = TypeVar("T")

LOAD_ATTEMPTS = 20  # so often a model of a run that trains meanwhile is looked for anew


class DamagedCheckpointError(ValueError):
    """A file of a checkpoint is not what its manifest says."""


def manifest_hash(manifest: dict) -> str:
    """Hash of all of a manifest but this hash, so that no bit of it can change unseen."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> dict | None:
    """The manifest of a complete folder; None where there is no valid one (the folder then does not count)."""
    try:
        manifest = json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    if not isinstance(manifest, dict) or manifest.get("format") != 1 or "files" not in manifest:
        return None
    return manifest if manifest.get("sha256") in (None, manifest_hash(manifest)) else None


def verify(folder: Path, *, training: bool = True) -> dict:
    """Check size and hash of every file against the manifest; DamagedCheckpointError names the first that differs.

    Without `training` the files that only resuming needs, two thirds of all bytes, are passed over.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise ValueError(f"{folder} is not a complete model folder (no valid manifest.json). Give a folder saved by nutshell.")
    for name, expected in manifest["files"].items():
        path = Path(folder) / name
        if not training and name.startswith("training/"):
            continue
        if not path.is_file():
            problem = "is missing"
        elif path.stat().st_size != expected["bytes"]:
            problem = f"has {path.stat().st_size} bytes, the manifest says {expected['bytes']}"
        elif sha256(path) != expected["sha256"]:
            problem = "has another sha256 than the manifest says"
        else:
            continue
        raise DamagedCheckpointError(f"checkpoint file {path} {problem}: it is damaged. An older one of the run may be whole.")
    return manifest


def checkpoints(stage_folder: Path) -> list[tuple[int, Path]]:
    """Complete checkpoints of a stage, oldest first: (step, folder). PermissionError where the folder can't be listed."""
    names = os.listdir(stage_folder) if stage_folder.is_dir() else []
    steps = ((name.removeprefix("step-"), stage_folder / name) for name in names if name.startswith("step-"))
    return sorted((int(step), path) for step, path in steps if step.isdigit() and read_manifest(path) is not None)


def incomplete(stage_folder: Path) -> list[Path]:
    """Checkpoints that do not count, since they have no valid manifest: nutshell leaves none behind, a bad disk or copy may."""
    return [path for path in stage_folder.glob("step-*") if read_manifest(path) is None]


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint of a stage folder, or of the last stage of a run that has one."""
    if read_manifest(folder) is not None:
        return folder
    for place in (folder, *(folder / stage for stage in reversed(STAGES))):
        if own := checkpoints(place):
            return own[-1][1]
    return None


def has_training(folder: Path) -> bool:
    """Whether a complete checkpoint still holds what resuming needs."""
    manifest = read_manifest(folder)
    return manifest is not None and "training/state.json" in manifest["files"]


def find(folder_or_run: str | Path) -> Path:
    """The model folder that `load` opens; FileNotFoundError or ValueError says what is missing."""
    path = Path(folder_or_run)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist. Give a run folder (runs/demo) or a model folder in it.")
    newest = latest(path)
    for place in (path, *(path / stage for stage in reversed(STAGES))):
        for torn in incomplete(place):
            if newest is None or place != newest.parent or torn.name > newest.name:
                print(f"{torn} has no valid manifest.json and is passed over.", file=sys.stderr)
        if newest is not None and place in (newest, newest.parent):
            break
    if newest is None and (path / "config.json").exists():
        raise ValueError(f"{path} is another program's model. Make it one of ours: nutshell import hf {path} --chat --out MODEL")
    if newest is None:
        raise ValueError(f"{path} holds no complete checkpoint. Train one first: nutshell demo --out {path}")
    return newest


def load_config(folder: Path) -> ModelConfig:
    """The shape of the model in a folder; ValueError where its config.json is none of ours."""
    try:
        return config_from_json(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:  # a setting too many, too few, or impossible
        raise ValueError(f"{folder}/config.json is not of a nutshell model of this version: {error}") from None


def read_model_folder(folder: Path, *, training: bool = False) -> tuple[ModelConfig, Tokenizer, dict]:
    """Verify a model folder (with `training` also what resuming needs) and read all but its tensors: (shape, tokenizer,
    manifest)."""
    manifest = verify(folder, training=training)
    config, tok = load_config(folder), Tokenizer.load(folder)
    if tok.vocab_size != config.vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} has {tok.vocab_size} tokens, the model's weights are for {config.vocab_size}. "
            "Use the tokenizer that the model was trained with."
        )
    return config, tok, manifest


def open_latest(folder_or_run: str | Path, open_folder: Callable[[Path], T]) -> T:
    """What `open_folder` makes of the folder that `find` finds, looked for anew where a run that trains replaces it meanwhile."""
    for attempt in range(LOAD_ATTEMPTS):
        folder = find(folder_or_run)
        before = read_manifest(folder)
        try:
            return open_folder(folder)
        except Exception:
            # A run that trains replaces its checkpoints: what was deleted or renamed meanwhile is not damaged.
            if read_manifest(folder) == before or attempt == LOAD_ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")
