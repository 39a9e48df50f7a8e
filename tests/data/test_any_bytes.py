"""Whatever bytes a file holds, every reader gives its content or one error that names it: F38 (9, 10), F39, F40 (32)."""

import bz2
import gzip
import io
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nutshell.data.conversations import find_conversations
from nutshell.data.preferences import read_pairs
from nutshell.data.text import read_documents
from nutshell.tokenizer import Tokenizer
from nutshell.tokenizer.chat import parse_messages

KINDS = (".txt", ".md", ".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")
PACKERS = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda content: pyarrow.compress(content, codec="zstd", asbytes=True),
}
READERS = {
    "text": lambda path: list(read_documents(path)),
    "tokenizer": lambda path: Tokenizer.train([path], vocab_size=265),
    "characters": lambda path: Tokenizer.train_characters([path]),
    "conversations": lambda path: find_conversations(path, check=parse_messages),
    "pairs": lambda path: read_pairs(path, parse_messages),
}

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ("text", "messages", "role", "content", "prompt", "chosen", "rejected", "conversations", "from", "value", "tool_calls")
    ), inner, max_size=3), max_leaves=8,
)  # fmt: skip
lines = st.lists(values.map(json.dumps) | st.text(max_size=20), max_size=4).map("\n".join)
contents = st.binary(max_size=80) | lines.map(lambda text: text.encode("utf-8", "surrogatepass")) | lines.map(str.encode)


def as_parquet(rows: list) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), out)
    return out.getvalue()


@pytest.mark.parametrize("reader", READERS)
@given(
    content=contents, kind=st.sampled_from(KINDS), packer=st.sampled_from(sorted(PACKERS)), cut=st.integers(0, 12),
    flip=st.none() | st.integers(0, 200),
)  # fmt: skip
def test_any_bytes(tmp_path_factory, reader, content, kind, packer, cut, flip):
    if kind == ".parquet" and content:
        content = as_parquet([content.decode("latin-1")])
    packed = bytearray(PACKERS[packer](content))
    if cut < 4:
        packed = packed[: len(packed) - cut]  # a copy that broke off
    if flip is not None and flip < len(packed):
        packed[flip] ^= 1 << flip % 8
    path = tmp_path_factory.mktemp("any") / f"file{kind}{packer if kind != '.parquet' else ''}"
    path.write_bytes(bytes(packed) if kind != ".parquet" or not packer else content)
    said = f"{path.name}: read"
    try:
        READERS[reader](path)
    except (ValueError, OSError) as error:
        said = str(error)
    assert path.name in said or "there is no text to" in said, said
