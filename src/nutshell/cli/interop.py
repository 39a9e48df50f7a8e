"""The verbs that carry models to other programs and from them: export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nutshell.cli.model import _arguments


def export(arguments: list[str]) -> Any:
    """Write a model for other programs: GGUF for llama.cpp and Ollama."""
    options = _arguments(
        "export", arguments, export.__doc__,
        _format={"choices": ["gguf"], "help": "gguf: one file for llama.cpp and Ollama, with a Modelfile"},
        _model={"help": "run folder or model folder"},
        _out={"help": "folder to make"},
        type={"default": "q8_0", "help": "gguf only: f32, f16, q8_0 or q4_0"},
    )  # fmt: skip
    from nutshell.checkpoint import find
    from nutshell.interop.gguf import export_gguf

    written = export_gguf(find(options.model), Path(options.out), options.type)
    print(f"{written}  {written.stat().st_size / 1e6:.1f} MB")
    return {"file": str(written), "bytes": written.stat().st_size}
