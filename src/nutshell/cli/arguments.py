"""Flags of the small verbs; those that train take the fields of a recipe (recipe.py)."""

from __future__ import annotations

import argparse
import inspect
from typing import Any


def parse_arguments(verb: str, arguments: list[str], description: str | None, **options: Any) -> argparse.Namespace:
    """Parse the flags of a verb: a name with underscores is a flag, `_name` a positional argument."""
    parser = argparse.ArgumentParser(
        f"nutshell {verb}",
        description=inspect.cleandoc(description or ""),
        epilog="--json prints the result as JSON on standard output.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, settings in options.items():
        settings = dict(settings)
        flags = [name[1:]] if name.startswith("_") else [f"--{name.replace('_', '-')}", *settings.pop("short", [])]
        if default := settings.get("default"):
            settings["help"] += f" (default: {' '.join(default) if isinstance(default, list) else default})"
        parser.add_argument(*flags, **settings)
    return parser.parse_intermixed_args(arguments)
