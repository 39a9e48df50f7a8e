"""The verbs that make a model: plan, the stages, all of them, a sweep."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nutshell.cli.recipe import open_runtime, read_recipe, read_study

if TYPE_CHECKING:
    from nutshell.plan.recipe import Recipe

DEMO = Path(__file__).parent / "demo.toml"


def pretrain(arguments: list[str]) -> Any:
    """Learn language from text."""
    return _run("pretrain", arguments, pretrain.__doc__)


def midtrain(arguments: list[str]) -> Any:
    """Learn the form of conversations and tools."""
    return _run("midtrain", arguments, midtrain.__doc__)


def sft(arguments: list[str]) -> Any:
    """Fine-tune on conversations."""
    return _run("sft", arguments, sft.__doc__)


def dpo(arguments: list[str]) -> Any:
    """Learn which of two answers is preferred: nutshell dpo --init FOLDER --pairs FILE --out RUN."""
    return _run("dpo", arguments, dpo.__doc__)


def rl(arguments: list[str]) -> Any:
    """Reinforce answers that can be checked."""
    return _run("rl", arguments, rl.__doc__)


def _run(stage: str, arguments: list[str], description: str | None) -> Any:
    recipe = read_recipe(stage, arguments, description)
    if stage == "dpo" and not recipe.stages.dpo.pairs:
        raise ValueError(
            "dpo learns from pairs of answers, and none are named. Give --pairs FILE, rows with chosen and rejected."
        )
    from nutshell.train.pipeline import run_stages

    with open_runtime(recipe) as runtime:
        run = run_stages(recipe, runtime, (stage,))
    return {"run": str(run.folder), "stages": [stage]}


def demo(arguments: list[str]) -> Any:
    """A chat model from an embedded schoolbook, in ten minutes and offline: speedrun by the demo's recipe."""
    return _all_stages(read_recipe("demo", [str(DEMO), *arguments], demo.__doc__))


def speedrun(arguments: list[str]) -> Any:
    """All stages, from raw text to a chat model."""
    return _all_stages(read_recipe("speedrun", arguments, speedrun.__doc__))


def _all_stages(recipe: Recipe) -> Any:
    from nutshell.train.pipeline import run_stages

    with open_runtime(recipe) as runtime:
        run_stages(recipe, runtime)
    if runtime.is_main:
        from nutshell.report.facts import build_report

        build_report(Path(recipe.out), usd_per_hour=recipe.usd_per_hour or None)
        out = shlex.quote(recipe.out)
        if not any(stage.wanted for name, stage in vars(recipe.stages).items() if name != "pretrain"):
            print(f"\nThe report is in {recipe.out}/report.md. A base model goes on with a text:")
            print(f"  nutshell generate {out} -p 'Once upon a time'")
            return {"run": recipe.out, "report": f"{recipe.out}/report.json"}
        print(f"\nThe report is in {recipe.out}/report.md. Talk to your model:")
        print(f"  nutshell chat {out}     in the terminal (make chat)")
        print(f"  nutshell serve {out}    in the browser, http://localhost:8000 (make serve)")
    return {"run": recipe.out, "report": f"{recipe.out}/report.json"}


def plan(arguments: list[str]) -> Any:
    """Decide model, batch, rates and horizon from --depth or --budget, and print it all."""
    recipe = read_recipe("plan", arguments, plan.__doc__)
    from nutshell.plan.estimate import describe

    named = any(a.split("=")[0] == "--out" for a in arguments)
    if not recipe.gpu and (named or (recipe.budget and not recipe.budget.rstrip().endswith("usd"))):
        from nutshell.train.prepare import open_run

        with open_runtime(recipe, ranks=False) as runtime, open_run(recipe, runtime) as run:
            print(describe(run.plan))
            return run.plan.to_dict()
    from nutshell.files import write_json
    from nutshell.plan.law import load_law
    from nutshell.plan.plan import draft_plan

    drafted = draft_plan(recipe, load_law(recipe.scaling))
    file = Path(recipe.out) / f"plan-{drafted.hardware.gpu or f'depth{drafted.model.depth}'}.json"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, drafted.to_dict())
        saved = f"saved     {file}"
    except OSError as error:
        saved = f"not saved {error}"
    print(f"{describe(drafted)}\n{saved}")
    if not recipe.gpu:
        print("Nothing was measured; memory is a GPU's. --budget 30min times this machine, --gpu 8xH100 plans for another.")
    return drafted.to_dict()


def scaling(arguments: list[str]) -> Any:
    """Train small models of several depths and horizons, and fit the law behind a plan's expected bpb."""
    from nutshell.plan.studies import Sweep

    sweep = read_study(Sweep, "scaling", arguments, scaling.__doc__)
    from nutshell.run.lock import run_lock
    from nutshell.train.scaling import run_sweep

    with open_runtime(sweep) as runtime, run_lock(Path(sweep.out)) if runtime.is_main else nullcontext():
        return run_sweep(sweep, runtime)


def ablate(arguments: list[str]) -> Any:
    """Pretrain variants of a recipe on the same text, and compare their bits per byte."""
    from nutshell.plan.studies import Ablation

    asked = read_study(Ablation, "ablate", arguments, ablate.__doc__)
    from nutshell.train.ablate import run_ablation

    with open_runtime(asked) as runtime:
        return run_ablation(asked, runtime)


def train_tokenizer(arguments: list[str]) -> Any:
    recipe = read_recipe("tokenizer train", arguments, "Train the run's tokenizer on its data (prepared first where needed).")
    from nutshell.run.lock import run_lock
    from nutshell.runtime import start_runtime
    from nutshell.train.prepare import check_data, prepare_data
    from nutshell.train.prepare_tokenizer import prepare_tokenizer

    check_data(recipe)
    runtime = start_runtime(device=recipe.device)
    with run_lock(Path(recipe.out)):
        tok = prepare_tokenizer(recipe, runtime, prepare_data(recipe, runtime))
    print(f"{recipe.out}/tokenizer: {tok.vocab_size} tokens")
    return {"folder": f"{recipe.out}/tokenizer", "vocab_size": tok.vocab_size}
