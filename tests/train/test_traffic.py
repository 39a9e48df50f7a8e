"""The arithmetic behind docs/scaling.md, by hand and by its limits."""

import runpy
from pathlib import Path

import pytest

traffic = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "traffic.py"))["traffic"]


def test_two_gpus_of_one_node_by_hand():
    # Half of the fp32 gradients go to the other GPU, half of the fp32 weights come back.
    replicated = traffic(1e9, 2, 2, "replicated", state=6)
    assert (replicated.nvlink_bytes, replicated.network_bytes) == (4e9, 0)
    assert replicated.state_bytes == 4e9 + 4e9 + 3e9
    assert replicated.seconds == pytest.approx(4e9 / 450e9)
    sharded = traffic(1e9, 2, 2, "fsdp", state=6)
    assert sharded.nvlink_bytes == (3e9 + 3e9 + 4e9) / 2
    assert sharded.state_bytes == 7e9


def test_nodes_by_hand():
    # 16 GPUs in two nodes: 15/16 of 8 bytes leave each GPU, an eighth of that through its network card.
    two = traffic(1e9, 16, 8, "replicated")
    assert two.nvlink_bytes + two.network_bytes == pytest.approx(7.5e9)
    assert two.network_bytes == pytest.approx(7.5e9 / 8)
    # HSDP: an eighth of the fp32 gradients, there and back, halved by two nodes.
    hybrid = traffic(1e9, 16, 8, "hsdp")
    assert hybrid.network_bytes == pytest.approx(2 * 0.5 * 4e9 / 8)
    assert hybrid.state_bytes == 14e9 / 8


def test_one_gpu_sends_nothing_and_holds_everything():
    for design in ("replicated", "fsdp", "hsdp"):
        alone = traffic(1e9, 1, 1, design)
        assert (alone.nvlink_bytes, alone.network_bytes, alone.state_bytes) == (0, 0, 14e9)


@pytest.mark.parametrize(("gpus", "per_node", "design"), [(12, 8, "fsdp"), (8, 8, "other")])
def test_what_is_not_covered_is_refused(gpus, per_node, design):
    with pytest.raises(ValueError, match="accepted: whole nodes"):
        traffic(1e9, gpus, per_node, design)
