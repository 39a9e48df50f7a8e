"""F38 (38): a Parquet file of one row group was read whole, at three times its size."""

import base64
import random

import pyarrow
import pyarrow.parquet
import pytest

from nutshell.data.rows import file_rows
from nutshell.data.text import read_file


@pytest.mark.parametrize("compression", ["snappy", "zstd"])
@pytest.mark.parametrize("reader", ["documents", "rows"])
def test_f38_a_file_of_one_row_group_is_read_in_parts(tmp_path, compression, reader):
    draw = random.Random(0)
    texts = [f"row {row} {base64.b64encode(draw.randbytes(900)).decode()}" for row in range(8_000)]  # 10 MB that hardly compress
    path = tmp_path / "one.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=10**9, compression=compression)
    size, before, most = path.stat().st_size, pyarrow.total_allocated_bytes(), 0
    found = read_file(path) if reader == "documents" else (row["text"] for _, row in file_rows(path))
    for number, text in enumerate(found):
        assert text == texts[number]
        if number % 100 == 0:
            most = max(most, pyarrow.total_allocated_bytes() - before)
    assert number == len(texts) - 1
    assert size > 7_000_000
    assert most < 5_000_000
