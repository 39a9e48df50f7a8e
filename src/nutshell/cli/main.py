"""The command `nutshell`: the only reader of argv. A verb imports its stage when it runs, so `--help` is quick."""

from __future__ import annotations

import codecs
import contextlib
import difflib
import dis
import io
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from nutshell.cli import bench, data, doctor, evaluation, feedback, generate, hub, interop, model, report, tokenizer, train
from nutshell.machine import die_with_torchrun

BAD_INPUT = (ValueError, MemoryError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CLOSED_PIPE = 128 + 13
"""The exit code that a shell reports for a command ended by SIGPIPE."""


VERBS: dict[str, Callable[[list[str]], Any]] = {
    "data": data.data,
    "tokenizer": tokenizer.tokenizer,
    "plan": train.plan,
    "scaling": train.scaling,
    "ablate": train.ablate,
    "pretrain": train.pretrain,
    "midtrain": train.midtrain,
    "sft": train.sft,
    "dpo": train.dpo,
    "rl": train.rl,
    "eval": evaluation.evaluate,
    "report": report.report,
    "bench": bench.bench,
    "chat": model.chat,
    "generate": generate.generate,
    "serve": model.serve,
    "feedback": feedback.feedback,
    "export": interop.export,
    "import": interop.import_,
    "push": hub.push,
    "speedrun": train.speedrun,
    "demo": train.demo,
    "doctor": doctor.doctor,
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
        "  --debug    print the traceback of every error",
        "  --version  print the version",
        "",
        "Begin with: nutshell demo",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run a verb. Exit codes: 0 success, 1 failure, 2 bad input, 75 stopped by a signal with everything saved, 130 interrupted,
    141 where the reader of the output has closed it."""
    # Waiting threads spin for microseconds, not milliseconds: a busy neighbour on the machine then costs its share, not 5 to 10
    # times the run (docs/experiments.md). OpenMP reads this when torch is imported, so it stands before every import of ours.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    die_with_torchrun()
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started us: nothing to read, and nobody to read us
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
        # A letter that the locale lacks is written as \u5929. Where it knows ASCII alone (LC_ALL=C), UTF-8 is read all the same,
        # and bytes that are no text are refused where they are used.
        if hasattr(stream := getattr(sys, name), "reconfigure"):
            with contextlib.suppress(io.UnsupportedOperation):  # somebody has read of it already
                if name != "stdin":
                    stream.reconfigure(errors="backslashreplace")
                else:
                    ascii_alone = codecs.lookup(stream.encoding).name == "ascii"
                    stream.reconfigure(encoding="utf-8" if ascii_alone else stream.encoding, errors="surrogateescape")
    try:
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if exit_code(error) is None:
            raise
        closed = isinstance(error, BrokenPipeError)  # `nutshell ... | head` ends as quietly as other commands
        with contextlib.suppress(OSError, ValueError):
            if not closed:
                print(f"nutshell: error: standard output: {error}", file=sys.stderr)
            for stream in (sys.stdout, sys.stderr)[: 1 + closed]:  # what is left in their buffers is discarded
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        code = CLOSED_PIPE if closed else 1
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    as_json, debug = "--json" in arguments, "--debug" in arguments
    arguments = [a for a in arguments if a not in ("--json", "--debug")]
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(usage())
            return 0 if arguments else 2
        if arguments[0] == "--version":
            from nutshell import __version__

            print(f"nutshell {__version__}")
            return 0
        if not _in_a_folder():  # torch would end the process without a word of ours
            raise FileNotFoundError("the folder that this command was started in is deleted. Change to another one: cd.")
        verb = arguments[0]
        if verb not in VERBS:
            close = difflib.get_close_matches(verb, VERBS, n=1)
            raise ValueError(
                f"unknown verb {verb!r}.{f' Did you mean {close[0]}?' if close else ''} Accepted: {', '.join(VERBS)}."
            )
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            result = VERBS[verb](arguments[1:])
        if as_json:
            print(json.dumps(result))
        return result.get("exit_code", 0) if isinstance(result, dict) else 0
    except SystemExit as end:  # of the parsers: help and bad flags
        return end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        print("nutshell: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        code = exit_code(error)
        if code is None or isinstance(error, BrokenPipeError):
            raise
        if debug:
            traceback.print_exc()
        print(f"nutshell: {'' if code == 75 else 'error: '}{error}", file=sys.stderr)
        return code


def _in_a_folder() -> bool:
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False


def exit_code(error: Exception) -> int | None:
    """The exit code of an error that is reported in one line; None for a bug, which keeps its traceback.

    One line is for what our own checks raise, and for what the system says of a file. A ValueError out of torch or pyarrow, or of
    a slip of ours, is of the same type but no fault of the user.
    """
    if (code := getattr(error, "exit_code", getattr(error.__cause__, "exit_code", None))) is not None:
        return int(code)  # a run that stops on purpose, a model that is damaged
    if isinstance(error, OSError) and error.errno is not None:
        return 2 if error.filename is not None and isinstance(error, BAD_INPUT) else 1  # a full disk is no bad input
    if isinstance(error, (ValueError, OSError, MemoryError)) and raised_by_us(error):
        return 2 if isinstance(error, BAD_INPUT) else 1
    return None


def raised_by_us(error: BaseException) -> bool:
    """Whether a `raise` of this package raised the error, or its tokenizer in Rust, which has no frames of its own."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    code = place.tb_frame.f_code if place else None
    if place is None or code is None or not code.co_filename.startswith(PACKAGE + os.sep):
        return False
    in_rust = code.co_filename.startswith(os.path.join(PACKAGE, "tokenizer", ""))
    return in_rust or code.co_code[place.tb_lasti] == dis.opmap["RAISE_VARARGS"]


if __name__ == "__main__":
    main()
