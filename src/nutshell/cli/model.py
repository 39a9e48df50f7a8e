"""The verbs that talk: chat and serve; and how every verb opens a model to answer with."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from nutshell.cli.arguments import parse_arguments, read_text, typed

DEVICE = {"default": "auto", "help": "auto, cpu, cuda or mps"}
TOOLS = {
    "tools": {"default": "calculator", "choices": ["calculator", "python", "none"],
              "help": "what runs the text between the model's tool tokens; python runs programs in a sandbox"},
    "unsafe_sandbox": {"default": None, "choices": ["landlock", "limits"],
                       "help": "a weaker sandbox where no full one works (docs/sandbox.md)"},
}  # fmt: skip
ENGINE = {
    "default": "auto",
    "choices": ["auto", "native", "native-int8", "torch"],
    "help": "what computes replies: native code on CPU (in the model's dtype, or weights in int8) or torch",
}
MODEL = {"nargs": "?", "type": os.path.expanduser, "default": "runs/demo", "help": "run folder or model folder"}


def open_model(folder: str, device: str, engine: str = "auto") -> tuple[Any, Any]:
    """A frozen model in the dtype that is fast on this machine, and its tokenizer. Where native code on the CPU answers, torch is
    not imported: it would take most of the start and of the memory."""
    from nutshell.machine import cpu_dtype, may_have_gpu

    if engine != "torch" and (device == "cpu" or (device == "auto" and not may_have_gpu())):
        from nutshell.infer.native import why_not
        from nutshell.infer.weights import StoredModel
        from nutshell.model_folder import open_latest, read_model_folder

        def read(found: Path) -> tuple[StoredModel, Any]:
            config, tok, _ = read_model_folder(found)
            return StoredModel(found, config, cpu_dtype()), tok

        stored, tok = open_latest(folder, read)
        if why_not(stored) is None:
            return stored, tok
    from nutshell.checkpoint import load
    from nutshell.runtime import start_runtime

    runtime = start_runtime(device=device)
    model, tok = load(folder, runtime.device)
    return model.set_precision(runtime.dtype).for_inference(), tok


def _open_tool(options: Any) -> Any:
    """The tool of `chat` and `serve`; the sandbox's level is said, as it decides what a program of the model's can do."""
    from nutshell.infer.tools import PythonTool, open_tool

    if options.unsafe_sandbox and options.tools != "python":
        raise ValueError("--unsafe-sandbox says how Python runs. Accepted: together with --tools python.")
    tool = open_tool(options.tools, options.unsafe_sandbox or "auto")
    if isinstance(tool, PythonTool):
        print(f"Tool: Python in a sandbox ({tool.sandbox.level})", file=sys.stderr)
    return tool


def chat(arguments: list[str]) -> Any:
    """Talk to a model in the terminal."""
    options = parse_arguments(
        "chat", arguments, chat.__doc__, _model=MODEL, device=DEVICE, engine=ENGINE,
        prompt={"short": ["-p"], "type": typed, "default": None, "help": "answer this and leave"},
        temperature={"type": float, "default": 0.4, "help": "0 always takes the most likely token"},
        top_k={"type": int, "default": 50, "help": "draw among this many tokens; 0 is off"},
        max_tokens={"type": int, "default": 256, "help": "longest answer"},
        system={"type": typed, "default": None, "help": "system prompt"}, **TOOLS,
    )  # fmt: skip
    from nutshell.infer.engine import Engine
    from nutshell.serve import terminal
    from nutshell.serve.offers import offers

    tool = _open_tool(options)

    def open_engine(folder: str | Path) -> Engine:
        engine = Engine(*open_model(str(folder), options.device, options.engine), max_rows=1, engine=options.engine)
        engine.tool = tool
        engine.allocate()  # the first answer need not wait for it
        print(f"Replies: {engine.computes}", file=sys.stderr)
        return engine

    engine = open_engine(options.model)
    models = {offer.id: partial(open_engine, offer.folder) for offer in offers(options.model)}
    terminal.chat(
        engine, prompt=options.prompt, temperature=options.temperature, top_k=options.top_k,
        max_tokens=options.max_tokens, system=options.system,
        models=models,
    )  # fmt: skip


def serve(arguments: list[str]) -> Any:
    """Talk to a model in the browser; an OpenAI-compatible API."""
    options = parse_arguments(
        "serve", arguments, serve.__doc__, _model=MODEL, device=DEVICE, engine=ENGINE,
        host={"default": "127.0.0.1", "help": "address to listen on; any other than loopback needs --api-key"},
        port={"type": int, "default": 8000, "help": "port to listen on"},
        api_key={"default": None, "help": "key that clients must send; NUTSHELL_API_KEY does not show in ps"},
        api_key_file={"type": os.path.expanduser, "default": None, "metavar": "FILE", "help": "a file that holds the key"},
        allow_host={"action": "append", "default": [], "metavar": "NAME", "help": "answer to this host name too"},
        kv_cache_bytes={"type": int, "default": None,
                        "help": "memory of a model's KV cache; default: that of 16 contexts, at most a quarter of what is free"},
        allow_origin={"action": "append", "default": [], "metavar": "ORIGIN", "help": "let pages of this site use the API"},
        max_queue={"type": int, "default": 64, "help": "answers of a model that may wait; 429 beyond"},
        log={"default": "text", "choices": ["text", "json"], "help": "how each request is logged on standard error"},
        max_models={"type": int, "default": 3, "help": "stages and steps that are in memory at a time"},
        feedback={"type": os.path.expanduser, "default": None, "metavar": "FILE.db",
                  "help": "keep thumbs and better answers in this SQLite file, for nutshell feedback export"},
        ignore_tools={"action": "store_true", "help": "answer requests that offer functions as if they offered none"},
        workers={"type": int, "default": 1, "help": "servers behind one front: a GPU each, or a share of the cores"},
        worker_socket={"default": None, "help": argparse.SUPPRESS}, **TOOLS,
    )  # fmt: skip

    api_key = options.api_key
    if options.api_key_file is not None and options.worker_socket is None:  # a worker has it from its front
        if api_key is not None:
            raise ValueError("the key is given twice. Accepted: one of --api-key KEY and --api-key-file FILE.")
        api_key = read_text(options.api_key_file)
    if options.worker_socket is None and options.workers != 1:
        return _serve_workers(arguments, options, api_key)
    from nutshell.serve.server import serve as run_server

    tool = _open_tool(options)

    def open_engine(folder: Path) -> Any:
        from nutshell.infer.cache_memory import describe_cache
        from nutshell.infer.engine import Engine

        model = open_model(str(folder), options.device, options.engine)
        engine = Engine(*model, engine=options.engine, kv_cache_bytes=options.kv_cache_bytes)
        engine.tool = tool
        pool = engine.allocate(touch=True).pool  # what does not fit is said now, not to the first who asks
        cache = describe_cache(engine.model, pool.total * pool.size)
        print(f"Replies: {engine.computes}; KV cache: {cache}", file=sys.stderr)
        return engine

    return run_server(
        options.model, open_engine, host=options.host, port=options.port, api_key=api_key,
        allow_hosts=options.allow_host, cors_origins=options.allow_origin, max_models=options.max_models,
        max_queue=options.max_queue, json_log=options.log == "json", feedback=options.feedback,
        ignore_tools=options.ignore_tools, worker_socket=options.worker_socket,
    )  # fmt: skip


def _serve_workers(arguments: list[str], options: Any, api_key: str | None) -> Any:
    """The same command once for each worker, and a front before them."""
    from nutshell.machine import cores, visible_gpus
    from nutshell.serve.front import serve_workers

    if options.workers < 1:
        raise ValueError(f"--workers is {options.workers}. Accepted: 1 or more.")
    gpus = visible_gpus() if options.device in ("auto", "cuda") else []
    share = {"OMP_NUM_THREADS": str(max(1, cores() // options.workers))}
    environments = [
        {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else share for number in range(options.workers)
    ]  # fmt: skip
    code = serve_workers(
        [sys.executable, "-m", "nutshell", "serve", *arguments], environments, host=options.host, port=options.port,
        api_key=api_key, allow_hosts=options.allow_host, json_log=options.log == "json",
    )  # fmt: skip
    return {"exit_code": code}
