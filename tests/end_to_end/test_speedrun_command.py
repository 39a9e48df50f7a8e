"""A whole tiny run by its command: what it leaves, and what it survives."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys

import pytest
from tiny_command import STEPS, TINY, check_whole, final_weights, losses_and_scores, wait_for

import nutshell
from nutshell import checkpoint
from nutshell.data.shards import open_shards
from nutshell.metrics import read_metrics


def test_a_whole_run_leaves_models_metrics_and_a_report(uninterrupted):
    folder, _, output = uninterrupted
    result = json.loads(output.splitlines()[-1])
    assert result == {"run": str(folder), "report": f"{folder}/report.json"}
    for words in (
        "model     speed, depth 1, width 64",
        "pretrain  6 steps of 512 tokens",
        "primer-facts",
        "nutshell chat",
        "nutshell serve",
    ):
        assert words in output
    for stage, steps in STEPS.items():
        assert checkpoint.latest(folder / stage).name == f"step-{steps:06d}"
    lines = read_metrics(folder)
    for stage, steps in STEPS.items():
        assert [line["step"] for line in lines if line["stage"] == stage and "loss" in line] == list(range(1, steps + 1))
        assert {"primer-facts", "primer-sums", "primer-letters"} <= next(
            line["eval"].keys() for line in reversed(lines) if line["stage"] == stage and "eval" in line
        )
    assert {"stage", "step", "seconds", "tokens", "loss", "lr", "tokens_per_second", "mfu"} <= next(
        line.keys() for line in lines if "loss" in line
    )
    report = json.loads((folder / "report.json").read_text())
    assert report.keys() >= {"plan", "environment", "seconds", "usd", "stages"}
    assert report["stages"]["pretrain"]["val_bpb"] > 0
    assert (folder / "report.md").read_text().startswith("# ")
    assert not list(folder.rglob("*.tmp*"))
    assert not list(folder.rglob(".tmp*"))
    model, tok = nutshell.load(folder)
    assert next(iter(nutshell.Engine(model, tok).generate(["Once"], max_tokens=2)), None) is not None


# ---- kill -9 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [8, pytest.param(30, marks=pytest.mark.slow)])
def test_kill_9_at_random_moments_and_the_same_command_again_end_with_the_same_weights(nursery, uninterrupted, tmp_path, kills):
    """Training and saving are killed in turn: with --save-every-seconds 0.001 every step saves."""
    expected, seconds, _ = uninterrupted
    chance = random.Random(kills)
    killed = run = most = 0
    while killed < kills or run == 0:
        run += 1
        folder = tmp_path / f"run{run}"
        command = ("speedrun", "--out", folder, *TINY, "--save-every-seconds", "0.001")
        while True:
            # Most of a run's moments lie behind its first half second; a restart that was killed at once gains nothing.
            delay = chance.uniform(0.1, 0.6 * seconds + 0.3) if killed < kills else 600.0
            code = nursery(*command).kill_after(delay) if delay < 600 else nursery(*command).wait()
            most = max(most, check_whole(folder))
            if code == 0:
                break
            assert code == -signal.SIGKILL
            killed += 1
        assert final_weights(folder) == final_weights(expected)
        assert losses_and_scores(folder) == losses_and_scores(expected)
        assert not list(folder.glob("*/.tmp-*"))
        assert (folder / "report.md").exists()
    assert killed == kills
    assert most > 1


# ---- other accidents -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_with_75_and_the_same_command_goes_on(nursery, uninterrupted, tmp_path, number):
    """Preemption: exit code 75, a marker file, nothing lost."""
    folder = tmp_path / "run"
    first = nursery("speedrun", "--out", folder, *TINY)
    wait_for(folder, "midtrain")
    first.send(number)
    assert first.wait() == 75
    stage, _, step = (folder / "preempted").read_text().split()
    assert f"nutshell: stopped after step {step} of {stage}; everything is saved. The same command goes on." in first.output
    assert "Traceback" not in first.output
    assert checkpoint.latest(folder / stage).name == f"step-{int(step):06d}"
    second = nursery("speedrun", "--out", folder)  # the plan remembers the flags
    assert second.wait() == 0, second.output
    assert not (folder / "preempted").exists()
    assert final_weights(folder) == final_weights(uninterrupted[0])
    assert losses_and_scores(folder) == losses_and_scores(uninterrupted[0])


def test_a_full_disk_ends_the_run_with_1_and_costs_nothing(nursery, uninterrupted, tmp_path):
    """No file may grow beyond 800 kB here: the weights of a checkpoint fit, the optimizer's state does not."""
    folder = tmp_path / "run"
    first = nursery("speedrun", "--out", folder, *TINY, file_bytes=800_000)
    assert first.wait() == 1
    assert "nutshell: error: cannot save" in first.output
    assert "pretrain/step-000002" in first.output
    assert "What was saved before is whole. Make room on the disk" in first.output
    assert "Traceback" not in first.output
    assert list((folder / "pretrain").iterdir()) == []
    assert nursery("speedrun", "--out", folder, *TINY).wait() == 0
    assert final_weights(folder) == final_weights(uninterrupted[0])


@pytest.mark.parametrize("verb", [["eval", "--tasks", "primer-facts", "--limit", "2"], ["chat", "-p", "hello"]])
def test_a_flipped_bit_in_the_model_is_named(nursery, uninterrupted, tmp_path, verb):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted[0], folder)
    file = folder / "rl" / "step-000004" / "model.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[100_000] ^= 16
    file.write_bytes(damaged)
    command = nursery(verb[0], folder, *verb[1:])
    assert command.wait() == 2
    assert f"checkpoint file {file} has another sha256 than the manifest says: it is damaged" in command.output
    assert "An older one of the run may be whole" in command.output


# ---- stages, files of one's own, ranks -----------------------------------------------------------------------------


def test_the_stages_one_by_one_do_what_the_whole_does(nursery, uninterrupted, tmp_path):
    folder = tmp_path / "run"
    for verb in (["data"], ["tokenizer", "train"], ["plan"], *([stage] for stage in STEPS)):
        command = nursery(*verb, "--out", folder, *TINY)
        assert command.wait() == 0, command.output
    assert final_weights(folder) == final_weights(uninterrupted[0])
    assert nursery("report", folder).wait() == 0
    assert (folder / "report.md").exists()


def test_text_and_conversations_of_ones_own(nursery, tmp_path):
    """nc 136, ng 33, mm 56: every stage takes the user's files."""
    text, chats, folder = tmp_path / "mine.txt", tmp_path / "mine.jsonl", tmp_path / "run"
    text.write_text("\n\n".join(f"Chapter {i}. The ship sailed on for {i} days, and nobody spoke of it." for i in range(300)))
    rows = ({"messages": [{"role": "user", "content": f"Day {i}?"}, {"role": "assistant", "content": f"We sailed {i} miles."}]}
            for i in range(60))  # fmt: skip
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = nursery("speedrun", "--out", folder, *TINY, "--data", text, "--sft", chats)
    assert command.wait() == 0, command.output
    assert all("The ship sailed on" in document for document in open_shards(folder / "data").read("train", 0))
    assert checkpoint.latest(folder).parent.name == "rl"
    text.write_text("changed")
    command = nursery("speedrun", "--out", folder, *TINY, "--data", text, "--sft", chats)
    assert command.wait() == 0
    assert f"--data {text} has changed since the run was planned; the run goes on with its own copy" in command.output


@pytest.mark.slow
def test_a_budget_is_planned_once_and_a_run_with_that_plan_is_the_same_when_it_is_killed(nursery, tmp_path):
    """As `make demo` does it: time decides the steps, the plan keeps them."""
    flags = "--budget 20s --width 64 --context 128 --vocab-size 512 --primer-characters 200000 --dtype float32 --eval-items 4"
    flags += " --tokens-per-parameter 0.2 --stages.rl.prompts 2 --stages.rl.samples 2 --stages.rl.max-tokens 8"
    command = nursery("speedrun", "--out", tmp_path / "whole", *flags.split())
    assert command.wait() == 0, command.output
    plan = json.loads((tmp_path / "whole" / "plan.json").read_text())
    assert plan["refitted"] == ["midtrain", "sft", "dpo", "rl"]
    folder = tmp_path / "killed"
    folder.mkdir()
    shutil.copy(tmp_path / "whole" / "plan.json", folder)
    command = ("speedrun", "--out", folder, *flags.split(), "--save-every-seconds", "0.2")
    for delay in (1.0, 2.5, 4.0, 4.5):
        assert nursery(*command).kill_after(delay) in (0, -signal.SIGKILL)
        check_whole(folder)
    assert nursery(*command).wait() == 0
    assert final_weights(folder) == final_weights(tmp_path / "whole")
    assert json.loads((folder / "plan.json").read_text())["stages"] == plan["stages"]


@pytest.mark.slow
def test_torchrun_saves_on_sigterm_and_goes_on(tmp_path):
    """torchrun passes SIGTERM on and exits with 1 either way: the marker tells a preemption."""
    folder = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "nutshell", "pretrain"]
    flags = ["--out", str(folder), *TINY, "--stages.pretrain.steps", "60"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with subprocess.Popen([*torchrun, *flags], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        wait_for(folder, "pretrain", timeout=120)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    marker = (folder / "preempted").read_text()
    assert marker.startswith("pretrain step ")
    assert checkpoint.latest(folder).name == f"step-{int(marker.split()[-1]):06d}"
    again = subprocess.run([*torchrun, *flags], env=environment, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again.stderr[-2000:]
    steps = [line["step"] for line in read_metrics(folder) if "loss" in line]
    assert steps == list(range(1, 61))
    assert not (folder / "preempted").exists()


@pytest.mark.slow
def test_a_run_that_goes_on_needs_no_more_memory_than_one_that_was_not_interrupted(nursery, tmp_path):
    """tt 809, 1136, mm 701: 13M parameters, so that a second copy of weights or optimizer state would show."""
    flags = (
        "--depth 2 --width 256 --context 128 --vocab-size 8192 --primer-characters 300000 --tokens-per-step 512 --dtype float32"
    )
    flags += " --eval-items 1 --stages.pretrain.steps 16"

    def peak(folder):
        return [line["peak_memory_bytes"] for line in read_metrics(folder) if "loss" in line][-1]

    assert nursery("pretrain", "--out", tmp_path / "whole", *flags.split()).wait() == 0
    first = nursery("pretrain", "--out", tmp_path / "resumed", *flags.split())
    wait_for(tmp_path / "resumed", "pretrain")
    first.send(signal.SIGTERM)
    assert first.wait() == 75, first.output
    again = nursery("pretrain", "--out", tmp_path / "resumed", *flags.split())
    assert again.wait() == 0, again.output
    assert final_weights(tmp_path / "resumed") == final_weights(tmp_path / "whole")
    weight_bytes = (tmp_path / "whole" / "pretrain" / "step-000016" / "model.safetensors").stat().st_size
    assert peak(tmp_path / "resumed") < peak(tmp_path / "whole") + 0.25 * weight_bytes
