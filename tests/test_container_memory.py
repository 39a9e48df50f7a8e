"""What a process may fill where a control group limits it: a plan by the whole machine's memory ended in a kill."""

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nutshell import machine
from nutshell.runtime import device_memory_bytes

GIB = 2**30
WHOLE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
pytestmark = pytest.mark.skipif(not WHOLE, reason="needs sysconf")


@given(
    limits=st.lists(st.sampled_from(["max", GIB // 4, GIB // 2, 2**63 - 4096, 3 * 2**50]), min_size=1, max_size=3),
    newer=st.booleans(), ranks=st.integers(1, 8),
)  # fmt: skip
def test_the_tightest_of_all_groups_above_counts(tmp_path_factory, limits, newer, ranks):
    """Versions 1 and 2 of the interface, where no limit is the word "max" or a number beyond any machine."""
    root = tmp_path_factory.mktemp("groups")
    folder = root if newer else root / "memory"
    for number, limit in enumerate(limits):
        folder = folder / f"slice{number}" if number else folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / machine.MEMORY_LIMITS[0 if newer else 1]).write_text(f"{limit}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "CGROUP", root)
        patch.setattr(machine, "memory_groups", lambda: [folder, *(p for p in folder.parents if root in (p, *p.parents))])
        found = device_memory_bytes(torch.device("cpu"), ranks)
    tightest = min([WHOLE, *(limit for limit in limits if limit != "max")])
    assert found == tightest // ranks


def test_the_groups_of_this_process_are_found():
    assert machine.memory_bytes() <= WHOLE
    groups = machine.memory_groups()
    assert not groups or machine.CGROUP in groups
