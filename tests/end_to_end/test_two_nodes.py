"""Two torchrun agents with one rendezvous: what two machines are, here on loopback. One of them is killed."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from tiny_command import TINY, final_weights, losses_and_scores, wait_for

from nutshell import checkpoint
from nutshell.metrics import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="a rank dies with its agent on Linux only")]
STEPS = 60
FLAGS = [*TINY, "--stages.pretrain.steps", str(STEPS), "--save-every-seconds", "0.5"]
PATIENCE = 240  # of a machine that others use too


class Agents:
    """The agents of one job, each in a process group of its own; all of what they started ends with the test."""

    def __init__(self, folder, logs) -> None:
        self.folder, self.logs, self.started = folder, logs, []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def start(self, nodes: str = "2", restarts: int = 3) -> subprocess.Popen:
        command = [
            sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", "--nproc-per-node=1", "--rdzv-backend=c10d",
            f"--rdzv-endpoint=127.0.0.1:{self.port}", "--rdzv-id=test", f"--max-restarts={restarts}", "--local-addr=127.0.0.1",
            "--rdzv-conf=join_timeout=200,read_timeout=200",
            "-m", "nutshell", "pretrain", "--out", str(self.folder), *FLAGS,
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # recipes/cluster/README.md says why
        log = open(self.logs / f"agent{len(self.started)}.txt", "wb")  # noqa: SIM115
        with log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        self.started.append(process)
        return process

    def wait(self, *processes) -> list[int]:
        return [process.wait(timeout=PATIENCE) for process in processes]

    def output(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(self.logs.glob("agent*")))

    def end(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait(timeout=30)


@pytest.fixture
def job(tmp_path):
    made = []

    def make(name):
        logs = tmp_path / f"{name}-logs"
        logs.mkdir()
        made.append(Agents(tmp_path / name, logs))
        return made[-1]

    yield make
    for agents in made:
        agents.end()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    base = tmp_path_factory.mktemp("nodes")
    (base / "logs").mkdir()
    agents = Agents(base / "run", base / "logs")
    try:
        one, two = agents.start(), agents.start()
        assert agents.wait(one, two) == [0, 0], agents.output()
    finally:
        agents.end()
    return agents.folder


def wait_for_checkpoint(folder, beyond=0):
    deadline = time.monotonic() + PATIENCE
    while not any(step > beyond for step, _ in checkpoint.checkpoints(folder / "pretrain")):
        assert time.monotonic() < deadline, f"no checkpoint beyond step {beyond} in {folder}"
        time.sleep(0.02)


def check_equal(folder, other):
    """To the bit: the same number of ranks, however often it was interrupted."""
    assert final_weights(folder) == final_weights(other)
    assert losses_and_scores(folder) == losses_and_scores(other)
    steps = [line["step"] for line in read_metrics(folder) if "loss" in line]
    assert steps == list(range(1, STEPS + 1))


def host_first(agents):
    """Two agents; the first hosts the rendezvous."""
    first = agents.start()
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", agents.port)) == 0:
                break
        time.sleep(0.05)
    return first, agents.start()


def test_a_killed_agent_that_comes_back_joins_the_survivor_and_nothing_is_lost(job, undisturbed):
    """nc 114, 511. The survivor's rank is restarted, waits, and both go on from the last checkpoint."""
    agents = job("run")
    host, other = host_first(agents)
    wait_for_checkpoint(agents.folder)
    assert (reached := [line["step"] for line in read_metrics(agents.folder) if "loss" in line][-1]) < STEPS
    other.kill()
    other.wait(timeout=30)
    time.sleep(2)
    assert host.poll() is None, agents.output()
    back = agents.start()
    assert agents.wait(host, back) == [0, 0], agents.output()
    assert reached > 0
    check_equal(agents.folder, undisturbed)


def test_where_the_rendezvous_itself_dies_the_survivor_stops_with_an_error_and_the_job_goes_on_anew(job, undisturbed):
    """As after a requeue: the same command on all nodes again."""
    agents = job("run")
    host, other = host_first(agents)
    wait_for_checkpoint(agents.folder)
    host.kill()
    host.wait(timeout=30)
    assert other.wait(timeout=PATIENCE) != 0
    assert [line["step"] for line in read_metrics(agents.folder) if "loss" in line][-1] < STEPS
    one, two = host_first(agents)
    assert agents.wait(one, two) == [0, 0], agents.output()
    check_equal(agents.folder, undisturbed)


def test_fewer_nodes_go_on_alone_where_the_job_allows_it(job, undisturbed):
    """--nnodes=1:2: the batches stay the same, the sums of gradients round otherwise."""
    agents = job("run")
    first = agents.start("1:2")
    second = agents.start("1:2")
    wait_for_checkpoint(agents.folder)
    worlds = {
        checkpoint.read_manifest(path)["meta"]["world_size"] for _, path in checkpoint.checkpoints(agents.folder / "pretrain")
    }
    second.kill()
    second.wait(timeout=30)
    code = first.wait(timeout=PATIENCE)
    if code != 0:  # the one that was killed hosted the rendezvous
        assert agents.wait(agents.start("1:2")) == [0], agents.output()
    newest = checkpoint.latest(agents.folder / "pretrain")
    assert worlds <= {1, 2}
    assert checkpoint.read_manifest(newest)["meta"]["world_size"] == 1
    assert newest.name == f"step-{STEPS:06d}"
    ours = [line["loss"] for line in losses_and_scores(agents.folder) if "loss" in line]
    theirs = [line["loss"] for line in losses_and_scores(undisturbed) if "loss" in line]
    assert len(ours) == STEPS
    assert ours == pytest.approx(theirs, rel=2e-2)


def test_a_signal_to_one_node_saves_on_all(job, undisturbed):
    """A spot machine is taken away, and only its agent hears of it. The other agent waits for one that comes in its place."""
    agents = job("run")
    host, other = host_first(agents)
    wait_for(agents.folder, "pretrain", timeout=PATIENCE)
    start = time.monotonic()
    other.send_signal(signal.SIGTERM)
    assert other.wait(timeout=60) != 0
    assert time.monotonic() - start < 25
    stage, _, step = (agents.folder / "preempted").read_text().split()
    assert checkpoint.latest(agents.folder / stage).name == f"step-{int(step):06d}"
    assert int(step) < STEPS
    assert host.poll() is None, agents.output()
    assert agents.wait(host, agents.start()) == [0, 0], agents.output()
    check_equal(agents.folder, undisturbed)
