"""Memory and cores of a container, not of its machine: plans by all memory end in a kill, 64 threads on 2 cores crawl."""

import os
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nutshell import machine
from nutshell.runtime import device_memory_bytes, start_runtime

GIB = 2**30
WHOLE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
pytestmark = pytest.mark.skipif(not WHOLE, reason="needs sysconf")


def groups_below(root, count):
    """So many control groups in each other, from the root down."""
    groups = [root.joinpath(*(f"slice{place}" for place in range(1, number + 1))) for number in range(count)]
    groups[-1].mkdir(parents=True, exist_ok=True)
    return groups


@contextmanager
def this_process_in(groups, root):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OMP_NUM_THREADS", raising=False)
        patch.setattr(machine, "CGROUP", root)
        above = [folder for folder in groups[0].parents if root in (folder, *folder.parents)]
        patch.setattr(machine, "control_groups", lambda of: [*groups, *above])
        yield


@given(
    limits=st.lists(st.sampled_from(["max", GIB // 4, GIB // 2, 2**63 - 4096, 3 * 2**50]), min_size=1, max_size=3),
    newer=st.booleans(), ranks=st.integers(1, 8),
)  # fmt: skip
def test_the_tightest_of_all_groups_above_counts(tmp_path_factory, limits, newer, ranks):
    """Versions 1 and 2 of the interface, where no limit is the word "max" or a number beyond any machine."""
    root = tmp_path_factory.mktemp("groups")
    groups = groups_below(root if newer else root / "memory", len(limits))
    for folder, limit in zip(groups, limits, strict=True):
        (folder / machine.MEMORY_LIMITS[0 if newer else 1]).write_text(f"{limit}\n")
    with this_process_in(groups, root):
        found = device_memory_bytes(torch.device("cpu"), ranks)
    tightest = min([WHOLE, *(limit for limit in limits if limit != "max")])
    assert found == tightest // ranks


def test_the_groups_of_this_process_are_found():
    assert machine.memory_bytes() <= WHOLE
    for of in ("memory", "cpu"):
        groups = machine.control_groups(of)
        assert not groups or {machine.CGROUP, machine.CGROUP / of} <= set(groups)


@given(
    quotas=st.lists(st.none() | st.integers(1, 40), min_size=1, max_size=3), period=st.sampled_from([100_000, 50_000]),
    newer=st.booleans(),
)  # fmt: skip
def test_threads_are_those_of_the_quota(tmp_path_factory, quotas, period, newer):
    """In quarters of a core, from the root down; the tightest counts, and one thread is the least."""
    root = tmp_path_factory.mktemp("groups")
    groups = groups_below(root if newer else root / "cpu", len(quotas))
    for folder, quarters in zip(groups, quotas, strict=True):
        time = None if quarters is None else quarters * period // 4
        if newer:
            (folder / "cpu.max").write_text(f"{'max' if time is None else time} {period}\n")
        else:
            (folder / "cpu.cfs_quota_us").write_text(f"{-1 if time is None else time}\n")
            (folder / "cpu.cfs_period_us").write_text(f"{period}\n")
    with this_process_in(groups, root):
        found, quota = machine.cores(), machine.cpu_quota()
    allowed = [max(1, quarters // 4) for quarters in quotas if quarters is not None]
    assert quota == min(allowed, default=quota)
    assert 1 <= found <= quota
    assert allowed or quota > 10**6


@pytest.mark.parametrize(("quota", "asked", "omp"), [(1, 0, None), (1, 2, None), (1, 0, "2"), (10**6, 0, None)])
def test_a_run_takes_no_more_threads_than_that_unless_told(monkeypatch, quota, asked, omp):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr("nutshell.runtime.cpu_quota", lambda: quota)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if omp:
        monkeypatch.setenv("OMP_NUM_THREADS", omp)
    try:
        assert start_runtime(device="cpu", dtype="float32", threads=asked).threads == (
            1 if quota == 1 and not (asked or omp) else 2
        )
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("quota", "said"), [(1, ", 1 of them for this container, "), (10**6, None)])
def test_doctor_tells_the_cores_of_a_container(monkeypatch, quota, said):
    from nutshell.cli import doctor

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(doctor, "nvidia_gpus", list)
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    found = doctor.device()[0]
    assert (said in found) if said else ("container" not in found)
