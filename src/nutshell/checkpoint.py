"""Atomic model folders: what is there is whole, and what is whole is verified by hash before it is used.

Commit protocol: write into a temporary folder, fsync every file, write `manifest.json` last, fsync, rename, fsync the parent.
A folder without a valid manifest does not exist. Tensors are whole and keyed by parameter name, so any number of ranks reopens
them. No pickle.

Saving has two halves, so that training need not wait for a disk: `take_snapshot` copies the state in memory, `write_snapshot`
puts it into a folder, from any thread.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nutshell.files import STAGES, fsync, sha256, write_json
from nutshell.model.build import build_model
from nutshell.model.config_file import config_to_json
from nutshell.model.decoder import Decoder
from nutshell.model_folder import (
    DamagedCheckpointError,
    checkpoints,
    find,
    has_training,
    incomplete,
    latest,
    load_config,
    manifest_hash,
    open_latest,
    read_manifest,
    read_model_folder,
    verify,
)
from nutshell.tokenizer import Tokenizer

__all__ = [
    "STAGES", "DamagedCheckpointError", "Snapshot", "checkpoints", "drop_training", "find", "has_training", "incomplete",
    "latest", "load", "load_config", "load_model", "load_training", "read_manifest", "save_model_folder", "step_folder",
    "take_snapshot", "verify", "write_files", "write_snapshot",
]  # fmt: skip


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
        write_files(temporary, snapshot)
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


def write_files(folder: Path, snapshot: Snapshot) -> None:
    """Write all files of a model folder into an empty one and put them on the disk, the manifest last."""
    (folder / "config.json").write_text(json.dumps(snapshot.config, indent=2) + "\n", encoding="utf-8")
    save_file(snapshot.weights, folder / "model.safetensors", metadata={"format": "pt"})
    snapshot.tok.save(folder)
    if snapshot.training is not None:
        (folder / "training").mkdir()
        (folder / "training" / "state.json").write_text(json.dumps(snapshot.training) + "\n", encoding="utf-8")
        save_file(snapshot.tensors, folder / "training" / "state.safetensors")
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    manifest = {
        "format": 1,
        "tokenizer": snapshot.tok.fingerprint,
        "meta": snapshot.meta,
        "files": {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files},
    }
    manifest["sha256"] = manifest_hash(manifest)
    for p in files:
        fsync(p)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    fsync(folder / "manifest.json")
    fsync(folder)


def drop_training(folder: Path) -> None:
    """Keep the weights only. The manifest changes first, by rename: the folder is valid at every moment."""
    manifest = read_manifest(folder)
    if manifest is not None and has_training(folder):
        manifest["files"] = {name: entry for name, entry in manifest["files"].items() if not name.startswith("training/")}
        manifest["sha256"] = manifest_hash(manifest)
        write_json(folder / "manifest.json", manifest)
    shutil.rmtree(folder / "training", ignore_errors=True)


def load_model(folder: Path, device: str | torch.device = "cpu", *, training: bool = False) -> tuple[Decoder, Tokenizer, dict]:
    """Verify a model folder (with `training` also what resuming needs) and open it: (model, tokenizer, manifest)."""
    folder = Path(folder)
    config, tok, manifest = read_model_folder(folder, training=training)
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


def load(folder_or_run: str | Path, device: str | torch.device = "cpu") -> tuple[Decoder, Tokenizer]:
    """The model and tokenizer of a model folder, a stage folder, or a run (its last stage's newest checkpoint)."""
    model, tok, _ = open_latest(folder_or_run, lambda folder: load_model(folder, device))
    return model.eval(), tok
