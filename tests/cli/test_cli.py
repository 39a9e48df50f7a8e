"""The command line: help everywhere, JSON where asked, and bad input gives one message, exit code 2 and nothing written."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nutshell import __version__
from nutshell.cli import main as cli
from nutshell.cli.tokenizer import ACTIONS
from nutshell.tokenizer import Tokenizer
from nutshell.tokenizer.chat import render_prompt

TINY = (
    "--out run --depth 1 --width 64 --context 128 --vocab-size 512 --tokens-per-step 512"
    " --primer-characters 20000 --dtype float32"
)


@pytest.fixture
def command(run_command, monkeypatch):
    """Runs a command in an empty folder: (exit code, standard output, standard error on one line)."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("nutshell.runtime.matmul_flops", lambda device, dtype: 1e9)

    def run(line: str | list[str]) -> tuple[int, str, str]:
        code, out, err = run_command(line)
        return code, out, re.sub(r"[\s│╭╮╰╯─|]+", " ", err)

    return run


# ---- help ----------------------------------------------------------------------------------------------------------

COMMANDS = [*cli.VERBS, "data stats", *(f"tokenizer {action}" for action in ACTIONS)]


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_command_has_help(command, verb):
    code, out, _ = command(f"{verb} --help")
    assert code == 0
    assert "usage: nutshell" in out
    assert not list(Path().iterdir())


def test_the_usage_names_every_verb(command):
    code, out, _ = command("--help")
    assert code == 0
    for verb, run in cli.VERBS.items():
        description = run.__doc__
        assert f"  {verb} " in out
        assert description in out
    assert command("")[0] == 2


def test_the_flags_of_stages_say_what_they_do(command):
    out = command("pretrain --help")[1]
    for words in ("--stages.rl.temperature", "The one dial", "--optimizer.matrix-lr", "Longest row in tokens"):
        assert words in out


def test_the_version(command):
    assert command("--version")[:2] == (0, f"nutshell {__version__}\n")


# ---- bad input -----------------------------------------------------------------------------------------------------

BAD = {
    # verbs, recipes, flags
    "speedrn": "unknown verb 'speedrn'. Did you mean speedrun? Accepted: data, tokenizer, plan",
    "pretrain --dpth 4": "--dpth",
    "pretrain --depth four": "four",
    "pretrain --out": "--out",
    "speedrun recipes/nowhere": "recipe recipes/nowhere not found: expected a .toml file or a folder with config.toml",
    "speedrun typo.toml": "typo.toml: unknown key depht. Did you mean depth?",
    "speedrun": "neither depth nor budget is given. Use --depth 4, or --budget 8min",
    "plan": "neither depth nor budget is given. Use --depth 4, or --budget 8min",
    "speedrun --budget soon": "budget is 'soon'; accepted: 10s to 10 years (87600h), written like 90s, 8min or 2h",
    # sizes
    "pretrain --depth -1": "depth is -1; accepted: 0 (the plan decides), or 1 to 256",
    "pretrain --depth 4 --width 100": "width is 100, not a multiple of head_dim = 64. Use 128.",
    "pretrain --depth 1 --width 16": "width is 16",
    f"pretrain {TINY} --heads 4 --kv-heads 3": "kv_heads is 3, which does not divide heads = 4. Accepted: 1, 2, 4.",
    f"pretrain {TINY} --head-dim 1": "head_dim is 1; rotary embeddings need an even number. Try 2.",
    f"pretrain {TINY} --micro-batch-size 3": "micro_batch_size is 3, which does not divide the 4 rows of a step",
    f"pretrain {TINY} --tokens-per-step 500": "tokens_per_step is 500, not divisible by context x ranks = 128 x 1. Use a",
    f"pretrain {TINY} --window-pattern XY": "window_pattern is 'XY'; accepted: letters S and L",
    f"pretrain {TINY} --architecture llama": "architecture is 'llama'; accepted: speed, portable",
    f"pretrain {TINY} --stages.rl.temperature nan": "temperature is nan; accepted: above 0",
    f"pretrain {TINY} --device tpu": "--device is 'tpu'; this machine has: cpu",
    f"pretrain {TINY} --dtype int8": "--dtype is 'int8'; accepted: auto, float32, bfloat16",
    f"pretrain {TINY} --threads -1": "--threads is -1; accepted: 0 (all cores) or more",
    # files
    f"speedrun {TINY} --data nowhere.txt": "nowhere.txt does not exist: give a file (.txt, .md, .jsonl, .ndjson",
    f"speedrun {TINY} --data empty.txt": "no text in empty.txt: every document is empty",
    f"speedrun {TINY} --data short.txt": "the only document has 5 characters: too little for a train and a val part",
    f"speedrun {TINY} --data image.png": "image.png has suffix '.png'; accepted are .txt",
    f"speedrun {TINY} --data column.jsonl": "column.jsonl, line 1: no column 'text'; found words",
    f"speedrun {TINY} --data chats.jsonl": "no column 'text'; found messages; these look like conversations",
    f"speedrun {TINY} --data late.jsonl": "late.jsonl, line 3: no column 'text'; found words",
    f"speedrun {TINY} --data folder": "no data file in the folder folder",
    f"speedrun {TINY} --sft nowhere.jsonl": "nowhere.jsonl does not exist",
    f"speedrun {TINY} --sft column.jsonl": "column.jsonl, line 1: the row has the columns words; accepted are rows with messages",
    f"speedrun {TINY} --sft chats.jsonl": "line 1: message 0 has the role 'wizard'; accepted are system, user, assistant",
    f"speedrun {TINY} --sft blank.jsonl": "no conversation in blank.jsonl",
    f"speedrun {TINY} --eval-data nowhere": "nowhere is no folder; arc-easy reads a folder with arc/ARC-Easy-test.jsonl",
    f"pretrain {TINY} --out blank.jsonl": "--out is blank.jsonl, and blank.jsonl is a file. Accepted: a run's folder",
    # order
    f"sft {TINY}": "run has no midtrain checkpoint to start sft from. Run: nutshell midtrain first, or begin with",
    f"rl {TINY}": "run has no sft checkpoint to start rl from. Run: nutshell sft first, or begin with",
    # the small verbs
    "data --data nowhere.txt": "nowhere.txt does not exist",
    "tokenizer train --data nowhere.txt": "nowhere.txt does not exist",
    "eval nowhere": "nowhere does not exist. Give a run folder (runs/demo) or a model folder",
    "eval folder": "folder holds no complete checkpoint. Train one first: nutshell demo",
    "eval nowhere --tasks quiz": "unknown task 'quiz'. Accepted: primer-facts",
    "eval nowhere --tasks gsm8k": "gsm8k reads files: give --eval-data FOLDER",
    "eval nowhere --limit -1": "--limit is -1; accepted: 0 or more",
    "report nowhere": "nowhere is not a folder; give a run folder",
    "chat nowhere -p hello": "nowhere does not exist. Give a run folder",
    "serve nowhere --port 0": "nowhere does not exist. Give a run folder",
    "serve nowhere --host 0.0.0.0": "can be reached from other machines, and there is no API key",
    "serve nowhere --port 70000": "port is 70000; it must lie between 0 and 65535",
}  # fmt: skip


@pytest.mark.parametrize("line", BAD)
def test_bad_input_gives_one_message_and_exit_code_2_and_writes_nothing(command, line):
    Path("typo.toml").write_text("depht = 3\n")
    Path("empty.txt").write_text(" \n")
    Path("short.txt").write_text("short")
    Path("image.png").write_bytes(b"\x89PNG")
    Path("column.jsonl").write_text('{"words": "x"}\n')
    Path("late.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n{"words": "x"}\n')
    Path("chats.jsonl").write_text('{"messages": [{"role": "wizard", "content": "x"}]}\n')
    Path("blank.jsonl").write_text("\n")
    Path("folder").mkdir()
    before = sorted(Path().rglob("*"))
    code, out, err = command(line)
    assert code == 2, err
    assert BAD[line] in err
    assert "Traceback" not in err + out
    assert sorted(Path().rglob("*")) == before


def test_damaged_plans_and_metrics_are_named(command):
    Path("run").mkdir()
    for text, message in (("{", "run/plan.json is damaged"), ("[]", "run/plan.json: the whole is []"), ("{}", "run/plan.json: ")):
        Path("run/plan.json").write_text(text)
        code, _, err = command("pretrain --out run")
        assert (code, message in err) == (2, True), err
    Path("run/plan.json").unlink()
    Path("run/metrics.jsonl").write_text("not json\n{}\n")
    code, _, err = command("report run")
    assert code == 2
    assert "metrics.jsonl, line 1" in err


# ---- exit codes ----------------------------------------------------------------------------------------------------

FAILURES = """
import errno, json
from nutshell.run.folder import Preempted
from nutshell.train.stage import TrainingDiverged
def check(path): raise ValueError("what is wrong")
def memory(path): raise MemoryError("what is wrong")
def unreadable(path): raise OSError("what is wrong")
def slip(path): int("what is wrong")
def missing(path): open("no such file")
def full(path): raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")
def wire(path): raise ConnectionResetError(errno.ECONNRESET, "reset")
def stopped(path): raise Preempted("stopped")
def diverged(path): raise TrainingDiverged("what is wrong")
def interrupted(path): raise KeyboardInterrupt
"""


@pytest.mark.parametrize(
    ("name", "code"),
    [("check", 2), ("memory", 2), ("unreadable", 1), ("slip", None), ("missing", 2), ("full", 1), ("wire", 1), ("stopped", 75),
     ("diverged", 1), ("interrupted", 130)],
)  # fmt: skip
def test_f18_only_what_our_checks_raise_becomes_a_line(command, monkeypatch, name, code):
    """F18: the same ValueError is bad input where a check of this package raises it, and a bug where a library does."""
    ours: dict = {}
    exec(compile(FAILURES, str(Path(cli.__file__).parent / "made_up.py"), "exec"), ours)
    monkeypatch.setitem(cli.VERBS, "plan", ours[name])
    if code is None:
        with pytest.raises(ValueError, match="what is wrong"):
            cli.main(["plan"])
        return
    found, out, err = command("plan --json")
    assert (found, out) == (code, "")
    assert err.startswith("nutshell: ")
    assert "Traceback" not in err
    if code != 130:
        found, _, err = command("plan --debug")
        assert (found, "Traceback" in err) == (code, True)


def test_f18_the_same_error_raised_elsewhere_keeps_its_traceback(command, monkeypatch):
    def fail(arguments):
        raise ValueError("of another package")

    monkeypatch.setitem(cli.VERBS, "plan", fail)
    with pytest.raises(ValueError, match="of another package"):
        cli.main(["plan"])


@pytest.mark.parametrize("line", ["--help", "data --help", "plan --depth 1 --gpu H100 --out p"])
def test_f41_a_closed_pipe_ends_quietly(tmp_path, line):
    """F41: `nutshell ... | head` says nothing and gives the code of SIGPIPE, from every verb."""
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "-m", "nutshell", *line.split()], cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, "")


def test_f41_a_locale_without_a_letter_ends_nothing(tmp_path):
    """F41: under a C locale the text is written with its letters spelled out."""
    (tmp_path / "de.txt").write_text("Müller fuhr über die Brücke. " * 3000, encoding="utf-8")
    plain = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    for environment in (plain, {**os.environ, "PYTHONIOENCODING": "ascii"}):
        result = subprocess.run(
            [sys.executable, "-m", "nutshell", "data", "--data", "de.txt"], cwd=tmp_path, env=environment, capture_output=True
        )
        assert (result.returncode, result.stderr) == (0, b"")
        assert rb"M\xfcller" in result.stdout


# ---- results -------------------------------------------------------------------------------------------------------


@pytest.fixture
def tok():
    return Tokenizer.train(["the cat sat on the mat, naïve café"], vocab_size=275)


def test_a_recipe_trains_the_tokenizer_of_its_run(command):
    Path("recipe").mkdir()
    Path("recipe/config.toml").write_text('out = "run"\nvocab_size = 300\nprimer_characters = 20000\n')
    code, out, _ = command("tokenizer train recipe --json --device cpu")
    assert (code, json.loads(out)) == (0, {"folder": "run/tokenizer", "vocab_size": 300})
    assert Tokenizer.load("run/tokenizer").vocab_size == 300


def test_data_and_plan_give_json_on_standard_output_alone(command):
    code, out, _ = command(f"data {TINY} --json")
    assert code == 0
    assert json.loads(out)["train_blocks"] >= 1
    code, out, err = command(f"plan {TINY} --json")
    assert code == 0
    plan = json.loads(out)
    assert plan == json.loads(Path("run/plan.json").read_text())
    assert plan["model"]["vocab_size"] == Tokenizer.load("run/tokenizer").vocab_size
    assert "tokens x" in err  # what people read goes to standard error then
    assert not list(Path("run").glob(".tmp*"))


def trained(folder: str) -> None:
    """Make it look as if the run had saved a checkpoint."""
    step = Path(folder, "pretrain", "step-000001")
    step.mkdir(parents=True)
    (step / "manifest.json").write_text("{}")


def test_a_run_that_has_trained_keeps_its_settings(command):
    assert command(f"plan {TINY}")[0] == 0
    trained("run")
    before = Path("run/plan.json").read_text()
    for flags, message in (
        (
            "--depth 2",
            "run was planned with depth = 1, now it is 2. Leave that flag out to go on with the run, or give another --out",
        ),
        ("--stages.sft.steps 7", "run was planned with stages.sft.steps = 0, now it is 7."),
        ("--optimizer.matrix-lr 1", "run was planned with optimizer.matrix_lr = 0.02, now it is 1.0."),
        ("--seed 1", "run was planned with seed = 42, now it is 1"),
        ("--data other.txt", "run was planned with data = 'primer', now it is '"),
    ):
        code, _, err = command(f"plan --out run {flags}")
        assert (code, message in err) == (2, True), err
    for flags in ("", TINY, "--save-every-seconds 5 --usd-per-hour 2 --threads 1 --device cpu --eval-items 3 --out=run"):
        assert command(f"plan --out run {flags}")[0] == 0
    assert Path("run/plan.json").read_text() == before


def test_data_of_other_settings_in_the_run_folder_is_refused(command):
    """The shards of `nutshell data` with another seed or size must not be trained on silently."""
    assert command(f"data {TINY}")[0] == 0
    for flags in ("--seed 1", "--primer-characters 30000"):
        code, _, err = command(f"data {TINY} {flags}")
        assert code == 2
        assert "run/data holds {'primer': 20000, 'seed': 42}" in err
        assert "Delete it, or give another --out" in err
    Path("a.txt").write_text("some text of my own. " * 500)
    code, _, err = command(f"data {TINY} --data a.txt")
    assert code == 2
    assert "holds shards of other data or settings" in err


def test_a_model_that_was_never_trained_still_answers(command, tok):
    """eval and chat on a model folder, tasks named."""
    from nutshell.checkpoint import save_model_folder
    from nutshell.model.config import ModelConfig
    from nutshell.model.gpt import GPT

    shape = {"depth": 1, "width": 32, "heads": 2, "kv_heads": 2, "head_dim": 16, "context": 64}
    save_model_folder(Path("model"), GPT(ModelConfig(vocab_size=tok.vocab_size, bos_id=tok.bos_id, **shape)), tok)
    assert len(render_prompt([{"role": "user", "content": "hi"}], tok)) > 3
    code, out, _ = command("eval model --tasks primer-facts --limit 2 --json --device cpu")
    assert code == 0
    assert json.loads(out)["primer-facts"]["count"] == 2
    code, out, _ = command(["chat", "model", "-p", "hello", "--max-tokens", "4", "--device", "cpu"])
    assert code == 0


def test_a_model_whose_output_is_no_number_is_said_in_a_line(command, tok):
    """A sibling of F18 and F27: a traceback from chat and generate, and from eval an accuracy or NaN with code 0."""
    import torch

    from nutshell.checkpoint import save_model_folder
    from nutshell.model.config import ModelConfig
    from nutshell.model.gpt import GPT

    shape = {"depth": 1, "width": 32, "heads": 2, "kv_heads": 2, "head_dim": 16, "context": 64}
    model = GPT(ModelConfig(vocab_size=tok.vocab_size, bos_id=tok.bos_id, **shape))
    torch.nn.init.constant_(model.lm_head.weight, torch.nan)
    save_model_folder(Path("model"), model, tok)
    Path("text.txt").write_text("some words " * 20)
    Path("task.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}], "answer": "b", "options": ["b", "c"]}\n')
    for line in ("generate model", "chat model -p hi", "eval model --text text.txt", "eval model --tasks task.jsonl"):
        code, _, err = command(f"{line} --device cpu")
        assert (code, "NaN or infinite" in err, "Traceback" in err) == (1, True, False), (line, err)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell that closes streams")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_a_closed_stream_is_an_empty_one(tmp_path, closed):
    """A sibling of F41: `nutshell chat <&-` and `nutshell serve >&-` ended in an AttributeError of None."""
    used = "[stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)] and print('said')"
    program = f"import sys; from nutshell.cli import main; main.VERBS['plan'] = lambda _: {used}; main.main(['plan'])"
    line = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} {closed}"
    result = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "" if closed == ">&-" else "said\n", "")


def test_f33_the_home_folder_and_whole_paths(command, monkeypatch):
    """F33 (4), F32: ~ in a recipe and after = is the home folder; what a run reads is saved absolute."""
    home = Path("home").absolute()
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    Path("a.txt").write_text("some text of my own. " * 500)
    Path("tilde.toml").write_bytes(b'\xef\xbb\xbfdepth = 1\r\nout = "~/of recipe"\r\ndata = "a.txt"\r\n')  # F39: with a mark
    assert command("plan tilde.toml")[0] == 0
    assert command(["data", "--data=~/../a.txt", "--out=~/flag"])[0] == 0
    assert {path.name for path in home.iterdir()} == {"of recipe", "flag"}
    assert not Path("~").exists()
    assert json.loads((home / "of recipe" / "plan-depth1.json").read_text())["recipe"]["data"] == str(Path("a.txt").absolute())


def test_f33_a_plan_is_told_where_it_cannot_be_saved(command):
    """F33 (36)."""
    Path("runs").write_text("a file where the folder would be")
    code, out, _ = command("plan --depth 1")
    assert code == 0
    assert "parameters" in out
    assert "not saved" in out


def test_f33_make_takes_any_name_of_a_run():
    """F33 (45)."""
    root = Path(__file__).parents[2]
    line = ["make", "-s", "-n", "-o", ".venv/.installed", "chat", """RUN=my run's "first" $(touch x)"""]
    shown = subprocess.run(line, cwd=root, capture_output=True, text=True, check=True).stdout
    assert shlex.split(shown)[1:] == ["chat", """my run's "first" """]


def test_help_is_readable_in_the_narrowest_terminal(command, monkeypatch):
    """In 5 columns it never came to an end."""
    monkeypatch.setenv("COLUMNS", "1")
    code, out, _ = command("plan --help")
    assert code == 0
    assert len(out.splitlines()) < 2000


def test_a_folder_that_was_deleted_under_a_shell_is_said(command, tmp_path, monkeypatch):
    """torch ended the process without a word of ours."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    code, _, err = command("report run")
    assert code == 2
    assert "the folder that this command was started in is deleted" in err


def test_f34_two_commands_in_one_folder(command):
    """F34 (7): data and tokenizer train take the lock of the run."""
    from nutshell.run.lock import run_lock

    with run_lock(Path("run")):
        for verb in ("data", "tokenizer train"):
            code, _, err = command(f"{verb} {TINY}")
            assert (code, "another job is working in run" in err) == (2, True)


def test_f41_a_run_folder_that_is_not_utf8_is_refused_before_any_work(command):
    """F41 (24): weights and shards are written by libraries that take UTF-8 names alone."""
    code, _, err = command(["data", *TINY.split(), "--out", os.fsdecode(b"runs/\xff")])
    assert code == 2
    assert "runs/\ufffd is not UTF-8" in err
    assert not Path("runs").exists()
