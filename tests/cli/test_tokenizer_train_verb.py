"""`nutshell tokenizer train` straight from files: what it learns, prints and refuses, and when a recipe takes over."""

import json
from pathlib import Path

import pytest

from nutshell.cli import train
from nutshell.tokenizer import Tokenizer


def test_train_on_files_of_every_kind(command):
    import pyarrow
    import pyarrow.parquet

    texts = ["the cat sat on the mat. " * 20, "naïve café, 漢字 " * 20, "12345 + 678\r\n" * 20]
    Path("folder").mkdir()
    Path("folder/a.txt").write_bytes(texts[0].encode())
    Path("b.jsonl").write_text(json.dumps({"text": texts[1]}) + "\n")
    pyarrow.parquet.write_table(pyarrow.table({"text": [texts[2], None]}), "c.parquet")
    flags = ("--out", "new/tok", "--vocab-size", "300", "--pattern", "gpt2")
    code, out, err = command("train", "folder", *flags, "b.jsonl", "c.parquet", "--json")
    assert code == 0, err
    result = json.loads(out)
    tok = Tokenizer.load("new/tok")
    assert tok.merges == Tokenizer.train(texts, 300, "gpt2").merges
    assert result["folder"] == "new/tok"
    assert result["vocab_size"] == tok.vocab_size == 300
    assert result["bytes"] == len("".join(texts).encode())
    assert result["megabytes_per_second"] == pytest.approx(result["bytes"] / result["seconds"] / 1e6)
    assert result["bytes_per_token"] == pytest.approx(result["bytes"] / sum(len(tok.encode(text)) for text in texts))
    assert "new/tok: 300 tokens\n" in err
    assert sorted(path.name for path in Path("new/tok").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_a_tokenizer_is_replaced_only_with_force(command, tok):
    Path("a.txt").write_text("entirely other words " * 9)
    before = Path("run/tokenizer/tokenizer.json").read_bytes()
    line = ("train", "a.txt", "--out", "run/tokenizer", "--vocab-size", "300")
    code, _, err = command(*line)
    assert code == 2
    assert "run/tokenizer holds a tokenizer already; give another --out, or --force to replace it" in err
    assert Path("run/tokenizer/tokenizer.json").read_bytes() == before
    code, out, _ = command(*line, "--force")
    assert code == 0
    assert Path("run/tokenizer/tokenizer.json").read_bytes() != before
    assert "fewer than the 300 asked for" in out


def test_what_is_a_recipe_goes_to_the_recipes_way(command, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "train_tokenizer", lambda arguments: seen.append(arguments))
    Path("recipe").mkdir()
    Path("recipe/config.toml").touch()
    Path("run").mkdir()
    Path("run/plan.json").write_text("{}")
    Path("a.txt").write_text("text")
    lines = [
        "recipe", "recipe.toml --depth 2", "--data a.txt --out x", "--data=a.txt", "--stages.rl.steps 3", "--out run",
        "--primer_characters 5",
    ]  # fmt: skip
    for line in lines:
        assert command("train", *line.split())[0] == 0
    assert seen == [line.split() for line in lines]


# ---- bad input -----------------------------------------------------------------------------------------------------

BAD = {
    "train --out new": "give text to train on (.txt, .md, .jsonl, .ndjson, .json, .parquet files or folders",
    "train": "give text to train on",
    "train a.txt": "give --out FOLDER, where the tokenizer is written",
    "train nowhere.txt --out new": "nowhere.txt does not exist",
    "train nowhere.toml --out new": "recipe nowhere.toml not found",
    "train folder --out new": "no data file in the folder folder",
    "train a.json --out new": "a.json, item 1: no column 'text'; found a",
    "train empty.txt --out new": "there is no text to train a tokenizer on",
    "train latin.txt --out new": "latin.txt is not UTF-8",
    "train late.jsonl --out new": "late.jsonl, line 2: no column 'text'; found words",
    "train bad.parquet --out new": "bad.parquet cannot be read as Parquet",
    "train a.txt --out new --vocab-size 264": "vocab_size is 264, but 256 bytes and 9 special tokens take 265",
    "train a.txt --out new --vocab-size many": "invalid int value: 'many'",
    "train a.txt --out new --vocab-sze 300": "unrecognized arguments: --vocab-sze",
    "train a.txt --out new --pattern (": "(",
    "train a.txt --out new --threads -1": "--threads is -1; accepted: 0 (all cores) or more",
    "train a.txt --out a.txt": "--out a.txt is a file; give a folder",
    "train a.txt --out a.txt/new": "--out a.txt/new can't be written: ",
    "train a.txt --out planned": "planned is a run, which has a tokenizer of its own; give another --out",
}  # fmt: skip


@pytest.mark.parametrize("line", BAD)
def test_bad_input_gives_one_message_and_exit_code_2_and_writes_nothing(refused, line):
    refused(line, BAD[line])
