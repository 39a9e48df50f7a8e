"""What is known of a machine without torch: its cores, and whether it may have an accelerator."""

import os
import sys

import pytest

from nutshell import machine


@pytest.fixture
def threads_of_cores(monkeypatch):
    """threads_of_cores(allowed, siblings): the logical processors of this process, and for each those of its core."""

    def pretend(allowed, siblings):
        class FakePath:
            def __init__(self, path):
                self.cpu = int(path.split("/cpu")[-1].split("/")[0])

            def exists(self):
                return siblings is not None

            def read_text(self, encoding):
                return f"{siblings[self.cpu]}\n"

        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: allowed, raising=False)
        monkeypatch.setattr(machine, "cpu_quota", lambda: 10**6)
        monkeypatch.setattr(machine, "Path", FakePath)

    return pretend


@pytest.mark.parametrize(
    ("allowed", "siblings", "cores"),
    [
        ({0, 1, 2, 3}, ["0,2", "1,3", "0,2", "1,3"], 2),
        ({1, 3}, ["0,2", "1,3", "0,2", "1,3"], 1),
        ({0, 1}, ["0,2", "1,3"], 2),
        ({0, 5}, None, 2),
    ],
    ids=["two threads a core", "one core of them", "a thread of each core", "a kernel that does not say"],
)
def test_hyper_threads_are_no_cores(threads_of_cores, allowed, siblings, cores):
    threads_of_cores(allowed, siblings)
    assert machine.cores() == cores


@pytest.mark.parametrize(("asked", "cores"), [("3", 3), ("4,2", 4), ("0", 2), ("many", 2), ("", 2)])
def test_omp_num_threads_says_otherwise(threads_of_cores, monkeypatch, asked, cores):
    threads_of_cores({0, 1}, None)
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert machine.cores() == cores


def test_this_machine_has_a_core(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert 1 <= machine.cores() <= (os.cpu_count() or 1)


def test_an_accelerator_is_known_by_what_its_driver_makes(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "linux")
    card = tmp_path / "nvidiactl"
    monkeypatch.setattr(machine, "GPU_DEVICES", (str(tmp_path / "kfd"), str(card)))
    assert not machine.may_have_gpu()
    card.touch()
    assert machine.may_have_gpu()
    card.unlink()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert machine.may_have_gpu(), "nothing says that it has none"


def test_where_torch_finds_one_it_may_have_one():
    import torch

    assert machine.may_have_gpu() or not torch.cuda.is_available()
