"""The verbs that use a model: eval, report, chat, serve."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any


def _arguments(verb: str, arguments: list[str], description: str | None, **options: Any) -> argparse.Namespace:
    """Parse the flags of a small verb: a name with underscores is a flag, `_name` a positional argument."""
    parser = argparse.ArgumentParser(
        f"nutshell {verb}", description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    for name, settings in options.items():
        flags = [name[1:]] if name.startswith("_") else [f"--{name.replace('_', '-')}", *settings.pop("short", [])]
        parser.add_argument(*flags, **settings)
    return parser.parse_args(arguments)


DEVICE = {"default": "auto", "help": "auto, cpu, cuda or mps"}
ENGINE = {
    "default": "auto",
    "choices": ["auto", "native", "native-int8", "torch"],
    "help": "what computes replies: native code on CPU (in the model's dtype, or weights in int8) or torch",
}
MODEL = {"nargs": "?", "type": os.path.expanduser, "default": "runs/demo", "help": "run folder or model folder"}


def evaluate(arguments: list[str]) -> Any:
    """Score a model on tasks."""
    options = _arguments(
        "eval", arguments, evaluate.__doc__, _model=MODEL, device=dict(DEVICE), engine=dict(ENGINE),
        tasks={"nargs": "+", "default": ["primer-facts", "primer-sums", "primer-letters"], "metavar": "TASK",
               "help": "primer-facts, primer-sums, primer-letters, arc-easy, arc-challenge, gsm8k, custom"},
        limit={"type": int, "default": 200, "help": "items of each task; 0 takes all"},
        data={"type": os.path.expanduser, "default": "",
              "help": "folder with arc/ and gsm8k/ for those tasks; a .jsonl file for custom"},
        seed={"type": int, "default": 42, "help": "which items a limit takes"},
    )  # fmt: skip
    if options.limit < 0:
        raise ValueError(f"--limit is {options.limit}; accepted: 0 (all items) or more.")
    from nutshell.eval import chat as scoring
    from nutshell.infer.engine import Engine
    from nutshell.tasks import load_task

    tasks = [
        load_task(n, limit=options.limit or None, seed=options.seed, data_folder=options.data or None) for n in options.tasks
    ]
    model, tok = open_model(options.model, options.device)
    print(f"Replies: {Engine(model, tok, 1, engine=options.engine).computes}")
    results = {}
    for task in tasks:
        result = scoring.evaluate(task, model, tok, compute=options.engine)
        results[task.name] = {k: v for k, v in result.items() if k != "examples"}
        print(f"{task.name:16} {result['accuracy']:7.1%}   random {task.baseline:6.1%}   {result['count']} items")
    return results


def report(arguments: list[str]) -> Any:
    """Write the report of a run."""
    options = _arguments(
        "report", arguments, report.__doc__, _run={"type": os.path.expanduser, "help": "run folder, finished or not"},
        usd_per_hour={"type": float, "default": 0.0, "help": "price of the machine, for the cost table"},
    )  # fmt: skip
    from nutshell.report.facts import build_report

    built = build_report(Path(options.run), usd_per_hour=options.usd_per_hour or None)
    print(f"{options.run}/report.md")
    return built


def open_model(folder: str, device: str) -> tuple[Any, Any]:
    """A frozen model in the dtype this machine is quick in, and its tokenizer."""
    from nutshell.checkpoint import load
    from nutshell.runtime import start_runtime

    runtime = start_runtime(device=device)
    model, tok = load(folder, runtime.device)
    return model.set_precision(runtime.dtype).for_inference(), tok


def chat(arguments: list[str]) -> Any:
    """Talk to a model in the terminal."""
    options = _arguments(
        "chat", arguments, chat.__doc__, _model=MODEL, device=dict(DEVICE), engine=dict(ENGINE),
        prompt={"short": ["-p"], "default": None, "help": "answer this and leave"},
        temperature={"type": float, "default": 0.4, "help": "0 always takes the most likely token"},
        top_k={"type": int, "default": 50, "help": "draw among this many tokens; 0 is off"},
        max_tokens={"type": int, "default": 256, "help": "longest answer"},
        system={"default": None, "help": "system prompt"},
    )  # fmt: skip
    from nutshell.infer.engine import Engine
    from nutshell.serve import terminal

    model, tok = open_model(options.model, options.device)
    engine = Engine(model, tok, max_rows=1, engine=options.engine)
    print(f"Replies: {engine.computes}", file=sys.stderr)
    terminal.chat(
        engine, prompt=options.prompt, temperature=options.temperature, top_k=options.top_k,
        max_tokens=options.max_tokens, system=options.system,
    )  # fmt: skip


def serve(arguments: list[str]) -> Any:
    """Talk to a model in the browser; an OpenAI-compatible API."""
    options = _arguments(
        "serve", arguments, serve.__doc__, _model=MODEL, device=dict(DEVICE), engine=dict(ENGINE),
        host={"default": "127.0.0.1", "help": "address to listen on; any other than loopback needs --api-key"},
        port={"type": int, "default": 8000, "help": "port to listen on"},
        api_key={"default": None, "help": "key that clients must send; NUTSHELL_API_KEY does not show in ps"},
        allow_host={"action": "append", "default": [], "metavar": "NAME", "help": "answer to this host name too"},
        cors_origin={"action": "append", "default": [], "metavar": "ORIGIN", "help": "let pages of this site use the API"},
    )  # fmt: skip
    from nutshell.serve import server

    server.serve(
        options.model, host=options.host, port=options.port, device=options.device, engine=options.engine, open_model=open_model,
        api_key=options.api_key, allow_hosts=options.allow_host, cors_origins=options.cors_origin,
    )  # fmt: skip
