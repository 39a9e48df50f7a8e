"""The command `nutshell`: the only reader of argv. A verb imports its stage when it runs, so `--help` is quick."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if TYPE_CHECKING:
    from nutshell.runtime import Runtime
    from nutshell.train.recipe import Recipe

FREE_IN_A_RUN = {"out", "save_every_seconds", "usd_per_hour", "budget"}  # may differ from the plan of a run that goes on


def _recipe(verb: str, arguments: list[str], description: str) -> Recipe:
    """[RECIPE] and flags -> the recipe. In a run that has a plan its recipe is the default, and must stay as it is."""
    from nutshell.config import load_toml, parse
    from nutshell.train.recipe import Recipe
    from nutshell.train.speedrun import load_plan

    given, default = None, Recipe()
    if arguments and not arguments[0].startswith("-"):
        given, arguments = arguments[0], arguments[1:]
        default = load_toml(Recipe, given)
    out = next((b for a, b in zip(arguments, arguments[1:], strict=False) if a == "--out"), default.out)
    out = next((a.removeprefix("--out=") for a in arguments if a.startswith("--out=")), out)
    plan = load_plan(Path(out))
    if plan and not given:
        default = replace(plan.recipe, out=out)
    recipe = parse(Recipe, arguments, prog=f"nutshell {verb} [RECIPE]", description=description, default=default)
    if plan:
        for f in fields(Recipe):
            planned, asked = getattr(plan.recipe, f.name), getattr(recipe, f.name)
            if planned != asked and f.name not in FREE_IN_A_RUN:
                raise ValueError(
                    f"{out} was planned with {f.name} = {planned!r}, now it is {asked!r}. "
                    "Leave that flag out to go on with the run, or give another --out for a new one."
                )
        # What a saved run computes must not depend on what this machine measures today.
        recipe = replace(recipe, dtype=plan.hardware.dtype, threads=plan.hardware.threads)
    return recipe


def _runtime(recipe: Recipe) -> Runtime:
    from nutshell.runtime import start_runtime

    return start_runtime(device=recipe.device, dtype=recipe.dtype, threads=recipe.threads)


def _stages(*names: str) -> Callable[[list[str]], Any]:
    def verb(arguments: list[str]) -> Any:
        label = names[0] if len(names) == 1 else "speedrun"
        recipe = _recipe(label, arguments, VERBS[label][1])
        from nutshell.train.speedrun import run_stages

        run = run_stages(recipe, _runtime(recipe), names)
        return {"run": str(run.folder), "stages": list(names)}

    return verb


def _speedrun(arguments: list[str]) -> Any:
    """All stages, then the report and what to do next."""
    recipe = _recipe("speedrun", arguments, VERBS["speedrun"][1])
    from nutshell.train.speedrun import run_stages

    runtime = _runtime(recipe)
    run_stages(recipe, runtime)
    if runtime.is_main:
        from nutshell.report import build_report

        build_report(Path(recipe.out), usd_per_hour=recipe.usd_per_hour or None)
        print(f"\nThe report is in {recipe.out}/report.md. Talk to your model:")
        print(f"  nutshell chat {recipe.out}     in the terminal (make chat)")
        print(f"  nutshell serve {recipe.out}    in the browser, http://localhost:8000 (make serve)")
    return {"run": recipe.out, "report": f"{recipe.out}/report.json"}


def _data(arguments: list[str]) -> Any:
    recipe = _recipe("data", arguments, VERBS["data"][1])
    from nutshell.data.shards import open_shards
    from nutshell.train.speedrun import prepare_data

    folder = prepare_data(recipe, _runtime(recipe))
    shards = open_shards(folder)
    sample = shards.read("train", 0)[0]
    print(
        f"{folder}: {shards.blocks('train')} training blocks, {shards.blocks('val')} validation blocks. A document:\n\n{sample}"
    )
    return {"folder": str(folder), "train_blocks": shards.blocks("train"), "val_blocks": shards.blocks("val")}


def _plan(arguments: list[str]) -> Any:
    recipe = _recipe("plan", arguments, VERBS["plan"][1])
    from nutshell.train.plan import describe
    from nutshell.train.speedrun import open_run

    with open_run(recipe, _runtime(recipe)) as run:
        print(describe(run.plan))
        return run.plan.to_dict()


def _tokenizer(arguments: list[str]) -> Any:
    actions = {"train": _tokenizer_train, "encode": _tokenizer_encode, "decode": _tokenizer_decode, "show": _tokenizer_show,
               "eval": _tokenizer_eval}  # fmt: skip
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: nutshell tokenizer {{{','.join(actions)}}} ... [--help]\n\n{VERBS['tokenizer'][1]}")
        return None
    if arguments[0] not in actions:
        raise ValueError(f"nutshell tokenizer {arguments[0]}: unknown. Accepted: {', '.join(actions)}.")
    return actions[arguments[0]](arguments[1:])


def _tokenizer_train(arguments: list[str]) -> Any:
    recipe = _recipe("tokenizer train", arguments, "Train the run's tokenizer on its data (prepared first where needed).")
    from nutshell.train.speedrun import prepare_data, prepare_tokenizer

    runtime = _runtime(recipe)
    prepare_data(recipe, runtime)
    tok = prepare_tokenizer(recipe, runtime)
    print(f"{recipe.out}/tokenizer: {tok.vocab_size} tokens")
    return {"folder": f"{recipe.out}/tokenizer", "vocab_size": tok.vocab_size}


def _positional() -> Any:
    import tyro

    return tyro.conf.Positional


def _open_tokenizer(folder: str) -> Any:
    from nutshell.tokenizer import Tokenizer

    path = Path(folder)
    return Tokenizer.load(path / "tokenizer" if (path / "tokenizer").is_dir() else path)


def _parse_verb(name: str, arguments: list[str], options: type) -> Any:
    from nutshell.config import parse

    return parse(options, arguments, prog=f"nutshell {name}", description=(options.__doc__ or "").strip())


def _tokenizer_encode(arguments: list[str]) -> Any:
    positional = _positional()

    @dataclass(frozen=True)
    class Encode:
        """Print the token ids of a text."""

        folder: Annotated[str, positional]
        """Run or tokenizer folder."""
        text: Annotated[str, positional]
        """The text; - reads standard input."""

    options = _parse_verb("tokenizer encode", arguments, Encode)
    text = sys.stdin.read() if options.text == "-" else options.text
    ids = _open_tokenizer(options.folder).encode(text)
    print(" ".join(map(str, ids)))
    return {"ids": ids}


def _tokenizer_decode(arguments: list[str]) -> Any:
    positional = _positional()

    @dataclass(frozen=True)
    class Decode:
        """Print the text of token ids."""

        folder: Annotated[str, positional]
        """Run or tokenizer folder."""
        ids: Annotated[tuple[int, ...], positional]
        """Token ids."""

    options = _parse_verb("tokenizer decode", arguments, Decode)
    text = _open_tokenizer(options.folder).decode(list(options.ids))
    print(text)
    return {"text": text}


def _tokenizer_show(arguments: list[str]) -> Any:
    positional = _positional()

    @dataclass(frozen=True)
    class Show:
        """Print a text with its tokens in colours."""

        folder: Annotated[str, positional]
        """Run or tokenizer folder."""
        text: Annotated[str, positional]
        """The text; - reads standard input."""

    options = _parse_verb("tokenizer show", arguments, Show)
    from nutshell.tokenizer.tools import show

    print(show(_open_tokenizer(options.folder), sys.stdin.read() if options.text == "-" else options.text))


def _tokenizer_eval(arguments: list[str]) -> Any:
    positional = _positional()

    @dataclass(frozen=True)
    class Compression:
        """Print bytes per token on text files: higher is better."""

        folder: Annotated[str, positional]
        """Run or tokenizer folder."""
        files: Annotated[tuple[str, ...], positional]
        """Text files."""

    options = _parse_verb("tokenizer eval", arguments, Compression)
    from nutshell.tokenizer.tools import compression

    texts = {name: Path(name).read_text(encoding="utf-8") for name in options.files}
    ratios = compression(_open_tokenizer(options.folder), texts)
    for name, ratio in ratios.items():
        print(f"{ratio:6.3f}  {name}")
    return ratios


def _eval(arguments: list[str]) -> Any:
    positional = _positional()

    @dataclass(frozen=True)
    class Evaluate:
        """Score a model on tasks."""

        model: Annotated[str, positional]
        """Run folder or model folder."""
        tasks: tuple[str, ...] = ("primer-facts", "primer-sums", "primer-letters")
        """primer-facts, primer-sums, primer-letters, arc-easy, arc-challenge, gsm8k."""
        limit: int = 200
        """Items of each task; 0 takes all."""
        data: str = ""
        """Folder with arc/ and gsm8k/, for those tasks."""
        seed: int = 42
        device: str = "auto"
        """auto, cpu, cuda or mps."""

    options = _parse_verb("eval", arguments, Evaluate)
    if options.limit < 0:
        raise ValueError(f"--limit is {options.limit}; accepted: 0 (all items) or more.")
    from nutshell.eval.chat import evaluate
    from nutshell.tasks import load_task

    tasks = [
        load_task(n, limit=options.limit or None, seed=options.seed, data_folder=options.data or None) for n in options.tasks
    ]
    model, tok, _ = _open_model(options.model, options.device)
    results = {}
    for task in tasks:
        result = evaluate(task, model, tok)
        results[task.name] = {k: v for k, v in result.items() if k != "examples"}
        print(f"{task.name:16} {result['accuracy']:7.1%}   random {task.baseline:6.1%}   {result['count']} items")
    return results


def _report(arguments: list[str]) -> Any:
    positional = _positional()

    @dataclass(frozen=True)
    class Report:
        """Write report.md, its plots and report.json of a run, finished or not."""

        run: Annotated[str, positional]
        """Run folder."""
        usd_per_hour: float = 0.0
        """Price of the machine, for the cost table."""

    options = _parse_verb("report", arguments, Report)
    from nutshell.report import build_report

    report = build_report(Path(options.run), usd_per_hour=options.usd_per_hour or None)
    print(f"{options.run}/report.md")
    return report


def _open_model(folder: str, device: str = "auto") -> tuple[Any, Any, str]:
    """A frozen model in the dtype this machine is quick in, its tokenizer, and its name."""
    from nutshell.checkpoint import load
    from nutshell.runtime import start_runtime

    runtime = start_runtime(device=device)
    model, tok = load(folder, runtime.device)
    model.use(runtime.dtype, runtime.attention)
    return model.for_inference(), tok, Path(folder).resolve().name


def _chat(arguments: list[str]) -> Any:
    import tyro

    @dataclass(frozen=True)
    class Chat:
        """Talk to a model in the terminal."""

        model: Annotated[str, tyro.conf.Positional] = "runs/demo"
        """Run folder or model folder."""
        prompt: Annotated[str, tyro.conf.arg(aliases=["-p"])] = ""
        """Answer this and leave."""
        temperature: float = 0.6
        """0 always takes the most likely token."""
        top_k: int = 50
        """Draw among this many tokens; 0 is off."""
        max_tokens: int = 256
        """Longest answer."""
        system: str = ""
        """System prompt."""
        device: str = "auto"
        """auto, cpu, cuda or mps."""

    options = _parse_verb("chat", arguments, Chat)
    from nutshell.infer.engine import Engine
    from nutshell.serve.terminal import chat

    model, tok, name = _open_model(options.model, options.device)
    chat(
        Engine(model, tok), prompt=options.prompt or None, temperature=options.temperature, top_k=options.top_k,
        max_tokens=options.max_tokens, system=options.system or None, name=name,
    )  # fmt: skip


def _serve(arguments: list[str]) -> Any:
    import tyro

    @dataclass(frozen=True)
    class Serve:
        """Open the web page and the OpenAI-compatible API."""

        model: Annotated[str, tyro.conf.Positional] = "runs/demo"
        """Run folder or model folder."""
        host: str = "127.0.0.1"
        """Address to listen on; any other than loopback needs --api-key."""
        port: int = 8000
        api_key: str = ""
        """Key that clients must send as a Bearer token."""
        device: str = "auto"
        """auto, cpu, cuda or mps."""

    options = _parse_verb("serve", arguments, Serve)
    from nutshell.serve.server import serve

    serve(lambda: _open_model(options.model, options.device), options)


def _verbs() -> dict[str, tuple[Callable[[list[str]], Any], str]]:
    return {
        "data": (_data, "Write the training text as shards: the embedded primer, or your own files."),
        "tokenizer": (_tokenizer, "Train a tokenizer, encode, decode, show tokens, measure compression."),
        "plan": (_plan, "Decide model, batch, rates and horizon from --depth or --budget, and print it all."),
        "pretrain": (_stages("pretrain"), "Learn language from text."),
        "midtrain": (_stages("midtrain"), "Learn the form of conversations and tools."),
        "sft": (_stages("sft"), "Fine-tune on conversations."),
        "rl": (_stages("rl"), "Reinforce answers that can be checked."),
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
    import contextlib

    try:
        if verb not in VERBS:
            import difflib

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
        return 2
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
