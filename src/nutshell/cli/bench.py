"""The verb `bench`: how fast a recipe's or a trained model's shape is on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nutshell.cli.recipe import before_parsing, open_runtime, read_recipe, with_shape_of


def bench(arguments: list[str]) -> Any:
    """Time training steps and decoding: nutshell bench [RECIPE | MODEL] [--profile trace.json]"""
    found, arguments = before_parsing("bench", arguments, "--profile")
    trace = Path(os.path.expanduser(found.profile)) if found.profile else None
    if trace and not trace.name.endswith((".json", ".json.gz")):
        raise ValueError(f"--profile {trace} is no name for a trace. Accepted: a file that ends in .json or .json.gz.")
    if trace and not trace.parent.is_dir():
        raise FileNotFoundError(f"--profile {trace}: the folder {trace.parent} does not exist. Make it, or name another file.")
    model = Path(os.path.expanduser(arguments[0])) if arguments and not arguments[0].startswith("-") else None
    if model and any((model / name).exists() for name in ("plan.json", "config.json")):
        from nutshell.config import parse
        from nutshell.plan.recipe import Recipe

        recipe = with_shape_of(parse(Recipe, arguments[1:], prog="nutshell bench [MODEL]", description=bench.__doc__), str(model))
    else:
        recipe = read_recipe("bench", arguments, bench.__doc__)
    from nutshell.train.bench import bench as measure
    from nutshell.train.bench import describe

    with open_runtime(recipe) as runtime:
        result = measure(recipe, runtime, trace)
    if runtime.is_main:
        print(describe(result))
        if trace:
            print(f"trace    {trace}: open it in chrome://tracing or https://ui.perfetto.dev")
    return result
