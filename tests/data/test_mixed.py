"""Several corpora as one: shares are kept in every block, and each document comes as often as asked."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nutshell.data.loader import PretrainLoader
from nutshell.data.mixed import MixedShards, open_corpus, passes_of, write_mixture
from nutshell.data.shards import write_shards


class Memory:
    """Shards without files."""

    def __init__(self, name, sizes):
        self.name, self.sizes = name, sizes

    def blocks(self, split):
        return len(self.sizes)

    def rows(self, split):
        return self.sizes

    def read(self, split, block):
        return [f"{self.name} {block} {number}" for number in range(self.sizes[block])]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.floats(1, 6)), min_size=1, max_size=4,
    )
)  # fmt: skip
def test_one_pass_reads_each_document_as_often_as_asked(drawn):
    parts = {str(n): Memory(str(n), sizes) for n, (sizes, _) in enumerate(drawn)}
    mixed = MixedShards(None, parts, {str(n): passes for n, (_, passes) in enumerate(drawn)})
    found = Counter(text for block in range(mixed.blocks("train")) for text in mixed.read("train", block))
    for n, (sizes, passes) in enumerate(drawn):
        counts = [found[f"{n} {block} {number}"] for block, size in enumerate(sizes) for number in range(size)]
        assert int(passes) <= min(counts)
        assert max(counts) <= int(passes) + 1
        if passes == int(passes):
            assert set(counts) == {int(passes)}
        assert sum(counts) == int(passes * sum(sizes))


def test_every_block_holds_the_shares(tmp_path):
    for name, count in (("big", 2000), ("small", 100)):
        write_shards((f"{name} {n} " + "word " * 20 for n in range(count)), tmp_path / name, rows_per_group=64)
    folders = {name: tmp_path / name for name in ("big", "small")}
    write_mixture(tmp_path, folders, {"big": 3, "small": 1}, repeats=False)
    mixed = open_corpus(tmp_path)
    assert mixed.blocks("train") > 20
    for block in range(mixed.blocks("train")):
        found = Counter(text.split()[0] for text in mixed.read("train", block))
        assert found["big"] / found["small"] == pytest.approx(3, rel=0.25)
    assert {text.split()[0] for block in range(mixed.blocks("val")) for text in mixed.read("val", block)} == {"big", "small"}
    assert open_corpus(tmp_path).fingerprint("train") == mixed.fingerprint("train")
    write_mixture(tmp_path, folders, {"big": 1, "small": 2}, repeats=True)
    assert open_corpus(tmp_path).passes == pytest.approx({"big": 1, "small": 2})
    assert open_corpus(tmp_path).fingerprint("train") != mixed.fingerprint("train")


def test_shards_are_not_made_a_mixture(tmp_path):
    write_shards(["one", "two"] * 20, tmp_path / "data", val_fraction=0.5)
    with pytest.raises(ValueError, match="holds shards of other data"):
        write_mixture(tmp_path / "data", {}, {}, repeats=False)


def test_amounts_become_passes_of_at_least_one():
    assert passes_of({"a": 1, "b": 1}, {"a": 1000, "b": 10}) == pytest.approx({"a": 1, "b": 100})


def test_a_loader_goes_on_in_the_middle_of_a_mixture(tmp_path):
    for name, count in (("a", 300), ("b", 40)):
        write_shards((f"{name} {n} " + "word " * (n % 9) for n in range(count)), tmp_path / name, rows_per_group=16)
    write_mixture(tmp_path, {name: tmp_path / name for name in "ab"}, {"a": 1, "b": 1}, repeats=False)

    def encode(texts):
        ids = [list(text.encode()) for text in texts]
        lengths = [0, *(len(row) for row in ids)]
        return [byte for row in ids for byte in row], [sum(lengths[: n + 1]) for n in range(len(lengths))]

    def loader():
        return PretrainLoader(open_corpus(tmp_path), encode, 300, 2, 65, seed=1)

    with loader() as whole:
        batches = [next(whole) for _ in range(60)]
    with loader() as first:
        for _ in range(25):
            next(first)
        state = first.state_dict()
    with loader() as second:
        second.load_state_dict(state)
        for expected in batches[25:]:
            assert next(second)[0].equal(expected[0])
