"""The verbs of `nutshell tokenizer`. `cli` hands over their arguments; each imports what it needs when it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from nutshell.cli.tokenizer_common import ACTIONS


def run(arguments: list[str], train_by_recipe: Callable[[list[str]], Any]) -> Any:
    """Run one of `ACTIONS` and return its result; `train_by_recipe` runs `train` where a recipe is given.

    ValueError and the like for bad input; a bad flag ends with SystemExit(2), a reader that has seen enough (such as head)
    with SystemExit(141), as other commands end then.
    """
    try:
        result = _run(arguments, train_by_recipe)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains once more when it ends
        sys.exit(141)
    return result


def _run(arguments: list[str], train_by_recipe: Callable[[list[str]], Any]) -> Any:
    action = arguments[0] if arguments else "--help"
    if action in ("-h", "--help"):
        print("usage: nutshell tokenizer ACTION [--help] ...\n")
        print("\n".join(f"  {name:8} {text}" for name, text in ACTIONS.items()))
        return None
    if action not in ACTIONS:
        raise ValueError(f"nutshell tokenizer {action}: unknown. Accepted: {', '.join(ACTIONS)}.")
    if action == "train":
        from nutshell.cli.tokenizer_train import train

        return train(arguments[1:], train_by_recipe)
    if action == "eval":
        from nutshell.cli.tokenizer_compare import compare

        return compare(arguments[1:])
    from nutshell.cli import tokenizer_text as text

    return {"encode": text.encode, "decode": text.decode, "show": text.show}[action](arguments[1:])
