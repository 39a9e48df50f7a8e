"""Atomic model folders: what is there is whole, and what is whole is verified by hash before it is used.

Commit protocol: write into a temporary folder, fsync every file, write `manifest.json` last, fsync, rename, fsync the parent.
A folder without a valid manifest does not exist. Tensors are whole and keyed by parameter name, so any number of ranks reopens
them. No pickle.

Saving has two halves, so that training need not wait for a disk: `take_snapshot` copies the state in memory, `write_snapshot`
puts it into a folder, from any thread.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nutshell.files import STAGES, fsync, sha256, write_json
from nutshell.model.build import build_model, config_from_json, config_to_json
from nutshell.model.config import ModelConfig
from nutshell.model.decoder import Decoder
from nutshell.tokenizer import Tokenizer

LOAD_ATTEMPTS = 20  # to open the newest model of a run that goes on saving meanwhile


class DamagedCheckpointError(ValueError):
    """A file of a checkpoint is not what its manifest says."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All of a checkpoint, in memory of its own: training may go on while it is written."""

    config: dict
    weights: dict[str, Tensor]
    tok: Tokenizer
    meta: dict  # of the run: stage, step, world size, hashes of data and config
    training: dict | None  # what resuming needs, as JSON; None for a model alone
    tensors: dict[str, Tensor]


def step_folder(stage_folder: Path, step: int) -> Path:
    return stage_folder / f"step-{step:06d}"


def _copies(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Copies on the CPU. From a GPU they go through pinned memory, all at once, at several times the speed."""
    copies = {}
    for name, value in tensors.items():
        copy = torch.empty(value.shape, dtype=dtype or value.dtype, pin_memory=value.is_cuda)
        copies[name] = copy.copy_(value.detach(), non_blocking=value.is_cuda)
    if any(value.is_cuda for value in tensors.values()):
        torch.cuda.synchronize()
    return copies


def take_snapshot(
    model: Decoder, tok: Tokenizer, *, meta: dict | None = None, training: dict | None = None,
    tensors: Mapping[str, Tensor] | None = None, copied: bool = False,
) -> Snapshot:  # fmt: skip
    """Copy everything that a checkpoint holds; `tensors` that are `copied` already (gathered from ranks) are taken as they are.

    `meta` describes the run (stage, step, metrics). `training` (JSON) and `tensors` (by name) are what resuming needs.
    """
    return Snapshot(
        config=config_to_json(model.config, tok.special_tokens.get("<|assistant_end|>")),
        weights=_copies(model.state_dict(), torch.float32), tok=tok, meta=meta or {}, training=training,
        tensors=dict(tensors or {}) if copied else _copies(tensors or {}),
    )  # fmt: skip


def save_model_folder(folder: Path, model: Decoder, tok: Tokenizer, **more: Any) -> Path:
    """Write a model folder atomically and wait for it; see `take_snapshot` and `write_snapshot`."""
    return write_snapshot(folder, take_snapshot(model, tok, **more))


def write_snapshot(folder: Path, snapshot: Snapshot) -> Path:
    """Write a model folder atomically; an existing one of the same name is replaced.

    Raises OSError where it cannot be written (a full disk); what was saved before then stays as it is.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (folder.parent / f".tmp-{kind}-{folder.name}-{os.getpid()}" for kind in ("new", "old"))
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        (temporary / "config.json").write_text(json.dumps(snapshot.config, indent=2) + "\n", encoding="utf-8")
        save_file(snapshot.weights, temporary / "model.safetensors", metadata={"format": "pt"})
        snapshot.tok.save(temporary)
        if snapshot.training is not None:
            (temporary / "training").mkdir()
            (temporary / "training" / "state.json").write_text(json.dumps(snapshot.training) + "\n", encoding="utf-8")
            save_file(snapshot.tensors, temporary / "training" / "state.safetensors")
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        manifest = {
            "format": 1,
            "tokenizer": snapshot.tok.fingerprint,
            "meta": snapshot.meta,
            "files": {p.relative_to(temporary).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files},
        }
        manifest["sha256"] = _manifest_hash(manifest)
        for p in files:
            fsync(p)
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        fsync(temporary / "manifest.json")
        fsync(temporary)
        if folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
        fsync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise OSError(f"cannot save {folder}: {error}. What was saved before is whole. Make room on the disk.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _manifest_hash(manifest: dict) -> str:
    """Hash of a manifest without this hash itself, so that a changed bit is noticed."""
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
    return manifest if manifest.get("sha256") in (None, _manifest_hash(manifest)) else None


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


def drop_training(folder: Path) -> None:
    """Keep the weights only. The manifest changes first, by rename: the folder is valid at every moment."""
    manifest = read_manifest(folder)
    if manifest is not None and has_training(folder):
        manifest["files"] = {name: entry for name, entry in manifest["files"].items() if not name.startswith("training/")}
        manifest["sha256"] = _manifest_hash(manifest)
        write_json(folder / "manifest.json", manifest)
    shutil.rmtree(folder / "training", ignore_errors=True)


def load_config(folder: Path) -> ModelConfig:
    """The shape of the model in a folder; ValueError where its config.json is none of ours."""
    try:
        return config_from_json(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:  # a setting too many, too few, or impossible
        raise ValueError(f"{folder}/config.json is not of a nutshell model of this version: {error}") from None


def load_model(folder: Path, device: str | torch.device = "cpu", *, training: bool = False) -> tuple[Decoder, Tokenizer, dict]:
    """Verify a model folder (with `training` also what resuming needs) and open it: (model, tokenizer, manifest)."""
    folder = Path(folder)
    manifest = verify(folder, training=training)
    config, tok = load_config(folder), Tokenizer.load(folder)
    if tok.vocab_size != config.vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} has {tok.vocab_size} tokens, the model's weights are for {config.vocab_size}. "
            "Use the tokenizer that the model was trained with."
        )
    model = build_model(config, initialize=False)
    weights, expected = load_file(folder / "model.safetensors"), model.state_dict()
    for name in {**expected, **weights}:
        found, asked = (tuple(tensors[name].shape) if name in tensors else "nothing" for tensors in (weights, expected))
        if found != asked and (name, asked) != ("backout", "nothing"):  # models of one or two layers had one that did nothing
            raise ValueError(
                f"{folder}/model.safetensors has {found} for {name}, where its config.json asks for {asked}: these are the "
                "weights of another architecture. Give a folder saved by nutshell."
            )
    model.load_state_dict({name: weights[name].float() for name in expected}, assign=True)
    return model.to(device), tok, manifest


def load_training(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    """What resuming needs: the JSON state and the tensors by name."""
    folder = Path(folder) / "training"
    return json.loads((folder / "state.json").read_text(encoding="utf-8")), load_file(folder / "state.safetensors")


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


def load(folder_or_run: str | Path, device: str | torch.device = "cpu") -> tuple[Decoder, Tokenizer]:
    """The model and tokenizer of a model folder, a stage folder, or a run (its last stage's newest checkpoint)."""
    for attempt in range(LOAD_ATTEMPTS):
        folder = find(folder_or_run)
        before = read_manifest(folder)
        try:
            model, tok, _ = load_model(folder, device)
            return model.eval(), tok
        except Exception:
            # A run that trains replaces its checkpoints: what was deleted or renamed meanwhile is not damaged.
            if read_manifest(folder) == before or attempt == LOAD_ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")
