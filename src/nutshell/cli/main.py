"""The command `nutshell`: the only reader of argv. A verb imports its stage when it runs, so `--help` is quick."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nutshell.plan.recipe import Recipe
    from nutshell.runtime import Runtime

BAD_INPUT = (ValueError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


def _recipe(verb: str, arguments: list[str], description: str) -> Recipe:
    """[RECIPE] and flags -> the recipe. In a run that has a plan its recipe is the default, and must stay as it is."""
    from nutshell.config import load_toml, parse
    from nutshell.plan.recipe import Recipe

    given, default = None, Recipe()
    if arguments and not arguments[0].startswith("-"):
        given, arguments = arguments[0], arguments[1:]
        default = load_toml(Recipe, given)
    out = next((b for a, b in zip(arguments, arguments[1:], strict=False) if a == "--out"), default.out)
    out = next((a.removeprefix("--out=") for a in arguments if a.startswith("--out=")), out)
    plan = None
    if (Path(out) / "plan.json").exists():
        from nutshell.plan.plan import load_plan
        from nutshell.plan.recipe import FREE_IN_A_RUN

        plan = load_plan(Path(out))
    if plan and not given:
        default = replace(plan.recipe, out=out)
    recipe = parse(Recipe, arguments, prog=f"nutshell {verb} [RECIPE]", description=description, default=default)
    if plan:
        for name, planned, asked in _differences(plan.recipe, recipe):
            if name not in FREE_IN_A_RUN:
                raise ValueError(
                    f"{out} was planned with {name} = {planned!r}, now it is {asked!r}. "
                    "Leave that flag out to go on with the run, or give another --out for a new one."
                )
        # What a saved run computes must not depend on what this machine measures today.
        recipe = replace(recipe, dtype=plan.hardware.dtype, threads=plan.hardware.threads)
    return recipe


def _differences(one: Any, other: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(name, value, other value) of every setting that differs; stages.sft.steps is the name of a nested one."""
    for f in fields(one):
        a, b = getattr(one, f.name), getattr(other, f.name)
        if is_dataclass(a):
            yield from _differences(a, b, f"{prefix}{f.name}.")
        elif a != b:
            yield prefix + f.name, a, b


@contextlib.contextmanager
def _runtime(recipe: Recipe) -> Iterator[Runtime]:
    """The runtime of a training; ranks that end well leave their group together."""
    from nutshell.model.probe import choose_attention
    from nutshell.runtime import leave_ranks, start_runtime

    yield start_runtime(
        device=recipe.device, dtype=recipe.dtype, threads=recipe.threads, fp8=recipe.fp8, choose_attention=choose_attention
    )
    leave_ranks()


def _stage(name: str) -> Callable[[list[str]], Any]:
    def verb(arguments: list[str]) -> Any:
        recipe = _recipe(name, arguments, VERBS[name][1])
        from nutshell.train.pipeline import run_stages

        with _runtime(recipe) as runtime:
            run = run_stages(recipe, runtime, (name,))
        return {"run": str(run.folder), "stages": [name]}

    return verb


def _speedrun(arguments: list[str]) -> Any:
    """All stages, then the report and what to do next."""
    recipe = _recipe("speedrun", arguments, VERBS["speedrun"][1])
    from nutshell.train.pipeline import run_stages

    with _runtime(recipe) as runtime:
        run_stages(recipe, runtime)
    if runtime.is_main:
        from nutshell.report.facts import build_report

        build_report(Path(recipe.out), usd_per_hour=recipe.usd_per_hour or None)
        print(f"\nThe report is in {recipe.out}/report.md. Talk to your model:")
        print(f"  nutshell chat {recipe.out}     in the terminal (make chat)")
        print(f"  nutshell serve {recipe.out}    in the browser, http://localhost:8000 (make serve)")
    return {"run": recipe.out, "report": f"{recipe.out}/report.json"}


def _data(arguments: list[str]) -> Any:
    recipe = _recipe("data", arguments, VERBS["data"][1])
    from nutshell.data.shards import open_shards
    from nutshell.train.prepare import check_data, prepare_data

    check_data(recipe)
    with _runtime(recipe) as runtime:
        folder = prepare_data(recipe, runtime)
    shards = open_shards(folder)
    sample = shards.read("train", 0)[0]
    print(
        f"{folder}: {shards.blocks('train')} training blocks, {shards.blocks('val')} validation blocks. A document:\n\n{sample}"
    )
    return {"folder": str(folder), "train_blocks": shards.blocks("train"), "val_blocks": shards.blocks("val")}


def _plan(arguments: list[str]) -> Any:
    """A run's own plan where --out names it or a budget has to be measured; else what the settings alone decide, at once."""
    recipe = _recipe("plan", arguments, VERBS["plan"][1])
    from nutshell.plan.summary import describe

    named = any(a.split("=")[0] == "--out" for a in arguments)
    if not recipe.gpu and (named or "RANK" in os.environ or (recipe.budget and not recipe.budget.rstrip().endswith("usd"))):
        from nutshell.train.prepare import open_run

        with _runtime(recipe) as runtime, open_run(recipe, runtime) as run:
            if runtime.is_main:
                print(describe(run.plan))
            return run.plan.to_dict()
    from nutshell.plan.law import load_law
    from nutshell.plan.plan import draft_plan

    plan = draft_plan(recipe, load_law(recipe.scaling))
    file = Path(recipe.out) / f"plan-{plan.hardware.gpu or f'depth{plan.model.depth}'}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(plan.to_dict(), indent=2) + "\n", encoding="utf-8")
    print(f"{describe(plan)}\nsaved     {file}")
    if not recipe.gpu:
        print("Nothing was measured; memory is a GPU's. --budget 30min times this machine, --gpu 8xH100 plans for another.")
    return plan.to_dict()


def _scaling(arguments: list[str]) -> Any:
    from nutshell.config import load_toml, parse
    from nutshell.plan.recipe import Sweep

    default = None
    if arguments and not arguments[0].startswith("-"):
        default = load_toml(Sweep, arguments[0])
        arguments = arguments[1:]
    sweep = parse(Sweep, arguments, prog="nutshell scaling [RECIPE]", description=VERBS["scaling"][1], default=default)
    from nutshell.train.ablate import run_sweep

    with _runtime(sweep) as runtime:
        return run_sweep(sweep, runtime)


def _arguments(verb: str, arguments: list[str], description: str, **options: Any) -> argparse.Namespace:
    """Parse the flags of a small verb: a name with underscores is a flag, `_name` a positional argument."""
    parser = argparse.ArgumentParser(
        f"nutshell {verb}", description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    for name, settings in options.items():
        flags = [name[1:]] if name.startswith("_") else [f"--{name.replace('_', '-')}", *settings.pop("short", [])]
        parser.add_argument(*flags, **settings)
    return parser.parse_args(arguments)


DEVICE = {"default": "auto", "help": "auto, cpu, cuda or mps"}
MODEL = {"nargs": "?", "default": "runs/demo", "help": "run folder or model folder"}


def _tokenizer(arguments: list[str]) -> Any:
    from nutshell.cli.tokenizer import run

    return run(arguments, _tokenizer_train)


def _tokenizer_train(arguments: list[str]) -> Any:
    recipe = _recipe("tokenizer train", arguments, "Train the run's tokenizer on its data (prepared first where needed).")
    from nutshell.train.prepare import check_data, prepare_data, prepare_tokenizer

    check_data(recipe)
    with _runtime(recipe) as runtime:
        tok = prepare_tokenizer(recipe, runtime, prepare_data(recipe, runtime))
    print(f"{recipe.out}/tokenizer: {tok.vocab_size} tokens")
    return {"folder": f"{recipe.out}/tokenizer", "vocab_size": tok.vocab_size}


def _eval(arguments: list[str]) -> Any:
    options = _arguments(
        "eval", arguments, VERBS["eval"][1], _model=MODEL, device=dict(DEVICE),
        tasks={"nargs": "+", "default": ["primer-facts", "primer-sums", "primer-letters"], "metavar": "TASK",
               "help": "primer-facts, primer-sums, primer-letters, arc-easy, arc-challenge, gsm8k, custom"},
        limit={"type": int, "default": 200, "help": "items of each task; 0 takes all"},
        data={"default": "", "help": "folder with arc/ and gsm8k/ for those tasks; a .jsonl file for custom"},
        seed={"type": int, "default": 42, "help": "which items a limit takes"},
    )  # fmt: skip
    if options.limit < 0:
        raise ValueError(f"--limit is {options.limit}; accepted: 0 (all items) or more.")
    from nutshell.eval.chat import evaluate
    from nutshell.tasks import load_task

    tasks = [
        load_task(n, limit=options.limit or None, seed=options.seed, data_folder=options.data or None) for n in options.tasks
    ]
    model, tok = _open_model(options.model, options.device)
    results = {}
    for task in tasks:
        result = evaluate(task, model, tok)
        results[task.name] = {k: v for k, v in result.items() if k != "examples"}
        print(f"{task.name:16} {result['accuracy']:7.1%}   random {task.baseline:6.1%}   {result['count']} items")
    return results


def _report(arguments: list[str]) -> Any:
    options = _arguments(
        "report", arguments, VERBS["report"][1], _run={"help": "run folder, finished or not"},
        usd_per_hour={"type": float, "default": 0.0, "help": "price of the machine, for the cost table"},
    )  # fmt: skip
    from nutshell.report.facts import build_report

    report = build_report(Path(options.run), usd_per_hour=options.usd_per_hour or None)
    print(f"{options.run}/report.md")
    return report


def _open_model(folder: str, device: str) -> tuple[Any, Any]:
    """A frozen model in the dtype this machine is quick in, and its tokenizer."""
    from nutshell.checkpoint import load
    from nutshell.runtime import start_runtime

    runtime = start_runtime(device=device)
    model, tok = load(folder, runtime.device)
    return model.use(runtime.dtype).for_inference(), tok


def _chat(arguments: list[str]) -> Any:
    options = _arguments(
        "chat", arguments, VERBS["chat"][1], _model=MODEL, device=dict(DEVICE),
        prompt={"short": ["-p"], "default": None, "help": "answer this and leave"},
        temperature={"type": float, "default": 0.4, "help": "0 always takes the most likely token"},
        top_k={"type": int, "default": 50, "help": "draw among this many tokens; 0 is off"},
        max_tokens={"type": int, "default": 256, "help": "longest answer"},
        system={"default": None, "help": "system prompt"},
    )  # fmt: skip
    from nutshell.infer.engine import Engine
    from nutshell.serve.terminal import chat

    model, tok = _open_model(options.model, options.device)
    chat(
        Engine(model, tok), prompt=options.prompt, temperature=options.temperature, top_k=options.top_k,
        max_tokens=options.max_tokens, system=options.system,
    )  # fmt: skip


def _serve(arguments: list[str]) -> Any:
    options = _arguments(
        "serve", arguments, VERBS["serve"][1], _model=MODEL, device=dict(DEVICE),
        host={"default": "127.0.0.1", "help": "address to listen on; any other than loopback needs --api-key"},
        port={"type": int, "default": 8000, "help": "port to listen on"},
        api_key={"default": None, "help": "key that clients must send as a Bearer token"},
    )  # fmt: skip
    from nutshell.serve.server import serve

    serve(
        options.model, host=options.host, port=options.port, device=options.device, open_model=_open_model,
        api_key=options.api_key,
    )  # fmt: skip


def _verbs() -> dict[str, tuple[Callable[[list[str]], Any], str]]:
    return {
        "data": (_data, "Write the training text as shards: the embedded primer, or your own files."),
        "tokenizer": (_tokenizer, "Train a tokenizer, encode, decode, show tokens, measure compression."),
        "plan": (_plan, "Decide model, batch, rates and horizon from --depth or --budget, and print it all."),
        "scaling": (_scaling, "Train small models of several depths and horizons, and fit the law behind a plan's expected bpb."),
        "pretrain": (_stage("pretrain"), "Learn language from text."),
        "midtrain": (_stage("midtrain"), "Learn the form of conversations and tools."),
        "sft": (_stage("sft"), "Fine-tune on conversations."),
        "rl": (_stage("rl"), "Reinforce answers that can be checked."),
        "eval": (_eval, "Score a model on tasks."),
        "report": (_report, "Write the report of a run."),
        "chat": (_chat, "Talk to a model in the terminal."),
        "serve": (_serve, "Talk to a model in the browser; an OpenAI-compatible API."),
        "speedrun": (_speedrun, "All stages, from raw text to a chat model."),
    }


VERBS = _verbs()


def usage() -> str:
    lines = [
        "usage: nutshell VERB [--help] ...",
        "",
        "The whole of ChatGPT in a nutshell: raw text to a chat model you trained.",
        "",
    ]
    lines += [f"  {name:10} {text}" for name, (_, text) in VERBS.items()]
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
            result = VERBS[verb][0](arguments)
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
