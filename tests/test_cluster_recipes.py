"""The scripts around torchrun: they parse, torchrun knows their flags, and the Slurm script queues again what was preempted."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

CLUSTER = Path(__file__).parents[1] / "recipes" / "cluster"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs bash")

SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$LOGS/srun.log"
[[ -z "$MARK" ]] || echo "$MARK" > "$RUN/preempted"
exit "$CODE"
"""
SCONTROL = """#!/usr/bin/env bash
echo "$@" >> "$LOGS/scontrol.log"
[[ "$1" != show ]] || printf 'node1\\nnode2\\n'
"""


@pytest.fixture
def slurm(tmp_path):
    """Run the script with stand-ins for Slurm's commands: (exit code, arguments of srun, calls of scontrol)."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(*, mark="", code=0, **more):
        environment = {
            **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "LOGS": str(tmp_path), "MARK": mark, "CODE": str(code),
            "RUN": str(tmp_path / "the run"), "SLURM_JOB_ID": "1234567", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8",
            "SLURM_JOB_NODELIST": "node[1-2]", **more,
        }  # fmt: skip
        command = ["bash", CLUSTER / "nutshell.sbatch", "recipes/demo", "--depth", "24"]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
        calls = (tmp_path / "scontrol.log").read_text().splitlines()
        return result.returncode, (tmp_path / "srun.log").read_text().splitlines(), calls

    return run


def test_a_job_that_was_preempted_is_queued_again_and_one_that_failed_is_not(slurm, tmp_path):
    """torchrun exits with 1 either way; the marker decides, and an old one does not count."""
    assert slurm(mark="pretrain step 7", code=1)[::2] == (0, ["show hostnames node[1-2]", "requeue 1234567"])
    assert slurm(code=3)[::2] == (3, ["show hostnames node[1-2]", "requeue 1234567", "show hostnames node[1-2]"])
    assert slurm()[0] == 0
    code, _, calls = slurm(mark="pretrain step 7", code=1, SLURM_RESTART_COUNT="100")
    assert code == 75
    assert len(calls) == 5


def check_torchrun(arguments: list[str], nodes: str, gpus: str, endpoint: str) -> list[str]:
    """torchrun accepts them; returns what is left for nutshell."""
    from torch.distributed.run import get_args_parser

    options = get_args_parser().parse_args(arguments)
    assert (options.nnodes, options.nproc_per_node, options.rdzv_endpoint) == (nodes, gpus, endpoint)
    assert (options.rdzv_backend, options.max_restarts, options.module) == ("c10d", 3, True)
    assert options.training_script == "nutshell"
    return options.training_script_args


def test_the_slurm_script_gives_torchrun_and_nutshell_what_they_understand(slurm, tmp_path):
    _, arguments, _ = slurm()
    at = arguments.index(".venv/bin/torchrun")
    assert arguments[:at] == ["--kill-on-bad-exit=1", "--cpu-bind=none"]
    left = check_torchrun(arguments[at + 1 :], "2", "8", "node1:24567")
    assert left == ["speedrun", "recipes/demo", "--depth", "24", "--out", str(tmp_path / "the run")]


def test_the_skypilot_file_gives_torchrun_and_nutshell_what_they_understand():
    yaml = pytest.importorskip("yaml")
    task = yaml.safe_load((CLUSTER / "sky.yaml").read_text())
    assert task["num_nodes"] == 2
    assert task["envs"].keys() >= {"RUN", "RECIPE", "FLAGS"}
    script = re.sub(r"^\s*\S+/torchrun", "printf '%s\\n'", task["run"], flags=re.MULTILINE)
    environment = {
        **os.environ, **task["envs"], "FLAGS": "--depth 24", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NUM_GPUS_PER_NODE": "8",
    }  # fmt: skip
    result = subprocess.run(["bash", "-euc", script], env=environment, capture_output=True, text=True, timeout=30, check=True)
    arguments = result.stdout.splitlines()
    assert "--local-addr=10.0.0.2" in arguments
    left = check_torchrun(arguments, "2", "8", "10.0.0.1:29400")
    assert left == ["speedrun", "recipes/demo", "--out", "/runs/d24", "--depth", "24"]


def test_the_readme_command_is_one_that_torchrun_understands():
    command = re.search(r"```\n.*?(torchrun .*?)```", (CLUSTER / "README.md").read_text(), re.DOTALL)[1]
    left = check_torchrun(shlex.split(command.replace("\\\n", " "))[1:], "2", "8", "FIRST_NODE:29400")
    assert left == ["speedrun", "recipes/demo", "--out", "$RUN"]
