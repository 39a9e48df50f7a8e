"""The command `nutshell`: the only reader of argv. A verb imports its stage when it runs, so `--help` is quick."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from nutshell.cli import model, train

BAD_INPUT = (ValueError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


def tokenizer(arguments: list[str]) -> Any:
    """Train a tokenizer, encode, decode, show tokens, measure compression."""
    from nutshell.cli.tokenizer import run

    return run(arguments, train.train_tokenizer)


VERBS: dict[str, Callable[[list[str]], Any]] = {
    "data": train.data,
    "tokenizer": tokenizer,
    "plan": train.plan,
    "scaling": train.scaling,
    "ablate": train.ablate,
    "pretrain": train.pretrain,
    "midtrain": train.midtrain,
    "sft": train.sft,
    "rl": train.rl,
    "eval": model.evaluate,
    "report": model.report,
    "chat": model.chat,
    "serve": model.serve,
    "speedrun": train.speedrun,
}


def usage() -> str:
    lines = [
        "usage: nutshell VERB [--help] ...",
        "",
        "The whole of ChatGPT in a nutshell: raw text to a chat model you trained.",
        "",
    ]
    lines += [f"  {name:10} {verb.__doc__}" for name, verb in VERBS.items()]
    lines += [
        "",
        "  --json     print the result as JSON",
        "  --version  print the version",
        "",
        "Begin with: nutshell speedrun recipes/demo",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run a verb. Exit codes: 0 success, 1 failure, 2 bad input, 75 stopped by a signal with everything saved."""
    # Waiting threads spin for microseconds, not milliseconds: a busy neighbour on the machine then costs its share, not 5 to 10
    # times the run (docs/experiments.md). OpenMP reads this when torch is imported, so it stands before every import of ours.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in arguments
    arguments = [a for a in arguments if a != "--json"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        sys.exit(0 if arguments else 2)
    if arguments[0] == "--version":
        from nutshell import __version__

        print(f"nutshell {__version__}")
        return
    sys.exit(_run(arguments[0], arguments[1:], as_json))


def _run(verb: str, arguments: list[str], as_json: bool) -> int:
    try:
        if verb not in VERBS:
            close = difflib.get_close_matches(verb, VERBS, n=1)
            raise ValueError(
                f"unknown verb {verb!r}.{f' Did you mean {close[0]}?' if close else ''} Accepted: {', '.join(VERBS)}."
            )
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            result = VERBS[verb](arguments)
        if as_json:
            print(json.dumps(result))
    except (ValueError, OSError) as error:
        print(f"nutshell: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, BAD_INPUT) else 1  # a full disk is no fault of the command
    except KeyboardInterrupt:
        print("nutshell: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if type(error).__name__ == "Preempted":  # its home imports torch
            print(f"nutshell: {error}", file=sys.stderr)
            return 75
        if type(error).__name__ == "TrainingDiverged":
            print(f"nutshell: error: {error}", file=sys.stderr)
            return 1
        raise
    return 0


if __name__ == "__main__":
    main()
