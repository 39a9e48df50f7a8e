"""Upload a model to the hub, with a model card."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from nutshell.checkpoint import find
from nutshell.hub import is_offline, upload
from nutshell.interop.hf_export import export_hf

GGUF_CARD = "# {name}\n\nA language model trained with nutshell, as GGUF for llama.cpp. `Modelfile` is Ollama's.\n"


def push(model: Path, repository: str, *, private: bool = False, tags: tuple[str, ...] = (), licence: str = "") -> str:
    """Upload a run, a model folder, or a folder that `nutshell export` made; returns the address of the commit.

    A run or model folder is uploaded as `export hf` writes it. `tags` and `licence` are added to the card. ValueError for a bad
    name, a folder that is not a model, offline mode, and what the hub refuses.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository, re.ASCII):
        raise ValueError(f"repository is {repository!r}; accepted: OWNER/NAME of letters, digits, - _ and .")
    if wrong := [tag for tag in (*tags, *([licence] if licence else [])) if not re.fullmatch(r"[\w.:-]+", tag)]:
        raise ValueError(f"{wrong[0]!r} is no tag or licence; accepted: letters, digits, - _ . and :, such as mit.")
    if is_offline():
        raise ValueError(f"{model} is not pushed: HF_HUB_OFFLINE is set. Unset it to reach the hub.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = model
        if not is_export(model):
            folder = export_hf(find(model), Path(temporary) / "export")
        page = folder / "README.md"
        card = page.read_text(encoding="utf-8") if page.is_file() else GGUF_CARD.format(name=repository.split("/")[1])
        return upload(folder, repository, private=private, card=with_metadata(card, tags, licence))


def is_export(folder: Path) -> bool:
    """Whether the folder was made for others, by `nutshell export` or the user: it has a card, or GGUF files."""
    ours = (folder / "manifest.json").exists() or (folder / "plan.json").exists()
    return not ours and ((folder / "README.md").is_file() or any(folder.glob("*.gguf")))


def with_metadata(card: str, tags: tuple[str, ...], licence: str) -> str:
    """The card with more tags and a licence in its header. ValueError if the header is not YAML."""
    from huggingface_hub import ModelCard

    try:
        found = ModelCard(card if card.startswith("---\n") else f"---\ntags: [nutshell]\n---\n\n{card}")
    except Exception as error:  # of the YAML reader
        raise ValueError(f"the header of README.md cannot be read ({error}). Mend it: YAML between two lines of ---.") from error
    if tags:
        found.data["tags"] = list(dict.fromkeys([*(found.data.get("tags") or []), *tags]))
    if licence:
        found.data["license"] = licence
    return str(found)
