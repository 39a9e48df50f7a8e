"""How large the cache becomes: from a limit, or from what the machine and its control group have left."""

import pytest

from nutshell import machine
from nutshell.infer import cache_memory
from nutshell.infer.cache_memory import bytes_per_token, cache_blocks, describe_cache, free_memory
from nutshell.infer.native import NativeRunner
from nutshell.model.kv_blocks import BLOCK
from nutshell.model.kv_cache import KVCache


def test_bytes_of_a_token_are_those_of_the_tensors(model):
    cache = KVCache(model.config, blocks=7)
    tokens = 7 * BLOCK
    assert bytes_per_token(model.config, "float32") * tokens == cache.keys.nbytes + cache.values.nbytes
    assert describe_cache(model, 10_000) == "10,000 tokens of 384 bytes, 4 MiB"


def test_a_cache_is_bounded_by_its_limit_by_a_share_of_free_memory_and_by_what_can_be_used(model, monkeypatch):
    block = 16 * bytes_per_token(model.config, "float32")
    assert cache_blocks(model, 64, 8, 10 * block + 5) == (10, 10 * block)
    assert cache_blocks(model, 64, 2, 10**9) == (8, 8 * block)  # two contexts of four blocks
    monkeypatch.setattr(cache_memory, "free_memory", lambda device: 28 * block)
    assert cache_blocks(model, 64, 8, None) == (7, 7 * block)  # a quarter
    assert cache_blocks(model, 64, 1, None) == (4, 4 * block)  # all that can be used
    monkeypatch.setattr(cache_memory, "free_memory", lambda device: 9 * block)
    assert cache_blocks(model, 64, 8, None) == (4, 4 * block)  # one whole context, within half
    monkeypatch.setattr(cache_memory, "free_memory", lambda device: 7 * block)
    with pytest.raises(MemoryError, match="no memory for the KV cache: one reply of 64 tokens needs"):
        cache_blocks(model, 64, 8, None)
    with pytest.raises(ValueError, match=f"may take {3 * block} bytes, and one reply of 64 tokens needs {4 * block}"):
        cache_blocks(model, 64, 8, 3 * block)


@pytest.mark.parametrize(
    "names",
    [
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_a_container_has_what_its_group_has_left(tmp_path, monkeypatch, names):
    limit, usage, dropped = names
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    whole = free_memory("cpu")
    (tmp_path / limit).write_text("5000000\n")
    (tmp_path / usage).write_text("3000000\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\n{dropped} 400000\n")
    assert free_memory("cpu") == 2_400_000
    (tmp_path / limit).write_text("max\n" if limit == "memory.max" else f"{2**62}\n")
    assert free_memory("cpu") == pytest.approx(whole, rel=0.2)


def test_native_code_reads_embeddings_where_the_model_has_them(model):
    tables = NativeRunner(model, 300, 1, 64).tables
    assert tables["embedding"].data_ptr() == model.embedding.weight.data_ptr()
    assert {name: table.data_ptr() for name, table in tables.items() if name != "embedding"} == {
        f"{layer}.value_embedding": table.weight.data_ptr() for layer, table in model.value_embeddings.items()
    }
