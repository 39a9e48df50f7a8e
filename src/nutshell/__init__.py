"""nutshell: the whole of ChatGPT in a nutshell. Names are loaded when they are first used, so `import nutshell` is quick."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nutshell.checkpoint import load as load
    from nutshell.infer.engine import Engine as Engine
    from nutshell.tokenizer import Tokenizer as Tokenizer

__version__ = "0.1.0"
__all__ = ["Engine", "Tokenizer", "__version__", "load"]

_HOMES = {"Tokenizer": "nutshell.tokenizer", "Engine": "nutshell.infer.engine", "load": "nutshell.checkpoint"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'nutshell' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
