"""`nutshell tokenizer eval`: which texts and tokenizers it measures, its JSON, and what it refuses."""

import json
import os
from pathlib import Path

import pytest

from nutshell.cli import compression as tools
from nutshell.tokenizer import Tokenizer

TEXT = "the cat sat on the mat, naïve café"
RANKS = os.environ.get("NUTSHELL_RANKS", "")


def test_eval_measures_samples_and_files_and_says_how_to_get_a_column(command, tok):
    Path("a.txt").write_bytes(b"the cat\r\n" * 3)
    code, out, _ = command("eval", "run", "a.txt")
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[2:11]] == [
        "bytes", "vocabulary", "news", "code", "korean", "chinese", "maths", "science", "a.txt",
    ]  # fmt: skip
    assert lines[3].split() == ["vocabulary", "275"]
    assert lines[10].split() == ["a.txt", "27", f"{27 / len(tok.encode('the cat' + chr(13) + chr(10)) * 3):.3f}"]
    assert lines[-1] == (
        "No column for GPT-2 and GPT-4: put gpt2.tiktoken and cl100k_base.tiktoken into a folder named by --ranks or "
        "NUTSHELL_RANKS (tiktoken's cache is looked through too)."
    )
    assert "saved" not in out


def test_eval_json_and_against(command, tok):
    small = Tokenizer.train([TEXT], vocab_size=265)
    small.save("small")
    small.save("other/run")
    Path("a.txt").write_text(TEXT, encoding="utf-8")
    code, out, err = command("eval", "run", "a.txt", "--against", "small", "other/run", "--json")
    assert code == 0
    result = json.loads(out)
    assert result["tokenizers"] == {
        "run": {"path": "run", "vocab_size": 275},
        "small": {"path": "small", "vocab_size": 265},
        "other/run": {"path": "other/run", "vocab_size": 265},  # the short name is taken
    }
    size, ours, theirs = len(TEXT.encode()), len(tok.encode(TEXT)), len(small.encode(TEXT))
    assert result["texts"]["a.txt"] == {
        "bytes": size,
        "tokens": {"run": ours, "small": theirs, "other/run": theirs},
        "bytes_per_token": {"run": size / ours, "small": 1.0, "other/run": 1.0},
        "saved_percent": {name: pytest.approx(100 * (theirs - ours) / theirs) for name in ("small", "other/run")},
    }
    assert "how many percent fewer tokens run makes" in err


def test_eval_reads_a_runs_own_text(command, tok):
    from nutshell.data.shards import write_shards

    documents = [f"the cat number {n} sat on the mat" for n in range(50)]
    write_shards(documents, Path("run/data"), val_fraction=0.2)
    Path("more.jsonl").write_text('{"text": "the cat"}\n{"text": "the mat"}\n')
    texts = json.loads(command("eval", "run", "more.jsonl", "--json")[1])["texts"]
    assert list(texts)[6:] == ["train", "val", "more.jsonl"]
    assert texts["train"]["bytes"] + texts["val"]["bytes"] == sum(map(len, documents))
    assert texts["more.jsonl"]["bytes"] == 14
    assert "train" not in json.loads(command("eval", "run/tokenizer", "--json")[1])["texts"]


def test_eval_takes_the_head_of_a_long_text_and_cuts_no_character(command, tok, monkeypatch):
    monkeypatch.setattr("nutshell.cli.compression.HEAD_BYTES", 10)
    Path("a.txt").write_text("漢" * 20, encoding="utf-8")
    Path("b.jsonl").write_text('{"text": "12345678"}\n' * 5)
    texts = json.loads(command("eval", "run", "a.txt", "b.jsonl", "--json")[1])["texts"]
    assert (texts["a.txt"]["bytes"], texts["b.jsonl"]["bytes"]) == (9, 16)


def test_a_file_of_a_samples_name_is_measured_beside_it(command, tok):
    Path("news").write_text("short")
    texts = json.loads(command("eval", "run", "news", "--json")[1])["texts"]
    assert (texts["./news"]["bytes"], texts["news"]["bytes"] > 1000) == (5, True)


@pytest.mark.parametrize("where", ["--ranks", "NUTSHELL_RANKS", "TIKTOKEN_CACHE_DIR"])
def test_gpt2_and_gpt4_have_columns_where_their_rank_files_are(command, tok, monkeypatch, where):
    """Rank files are found and opened with their pattern; a stand-in for the loader returns a small tokenizer."""
    Path("ranks").mkdir()
    for known in tools.KNOWN:
        Path("ranks", known.cached if where == "TIKTOKEN_CACHE_DIR" else known.files[0]).touch()
    load, opened = Tokenizer.load, []

    def stand_in(path, pattern=None):
        if Path(path).parent.name != "ranks":
            return load(path)
        opened.append((Path(path).name, pattern))
        return tok

    monkeypatch.setattr(Tokenizer, "load", stand_in)
    flags = ("--ranks", "ranks") if where == "--ranks" else ()
    if not flags:
        monkeypatch.setenv(where, "ranks")
    code, out, err = command("eval", "run", *flags, "--json")
    assert code == 0, err
    assert list(json.loads(out)["tokenizers"]) == ["run", "GPT-2", "GPT-4"]
    assert [pattern for _, pattern in opened] == ["gpt2", "cl100k"]
    assert "No column" not in err
    # What --against names already has its column.
    if where == "--ranks":
        code, out, err = command("eval", "run", "--ranks", "ranks", "--against", "ranks/gpt2.tiktoken", "--json")
        assert list(json.loads(out)["tokenizers"]) == ["run", "gpt2", "GPT-4"]


# ---- bad input -----------------------------------------------------------------------------------------------------

BAD = {
    "eval nowhere": "nowhere does not exist",
    "eval run nowhere.txt": "nowhere.txt does not exist",
    "eval run empty.txt": "empty.txt holds no text to measure",
    "eval run latin.txt": "latin.txt is not UTF-8 text",
    "eval run --against nowhere": "nowhere does not exist",
    "eval run --ranks nowhere": "--ranks is nowhere, which is not a folder; give the one with gpt2.tiktoken",
}  # fmt: skip


@pytest.mark.parametrize("line", BAD)
def test_bad_input_gives_one_message_and_exit_code_2_and_writes_nothing(refused, line):
    refused(line, BAD[line])


def test_a_wrong_ranks_folder_in_the_environment_is_named(command, tok, monkeypatch):
    monkeypatch.setenv("NUTSHELL_RANKS", "nowhere")
    code, _, err = command("eval", "run")
    assert code == 2
    assert "NUTSHELL_RANKS is nowhere, which is not a folder" in err


def test_the_pattern_is_for_rank_files_that_need_one(command, tok, monkeypatch):
    load, opened = Tokenizer.load, []

    def stand_in(path, pattern=None):
        opened.append((Path(path).name, pattern))
        if Path(path).suffix != ".tiktoken":
            return load(path)
        if pattern is None and Path(path).stem != "gpt2":
            Path("my.tiktoken").write_bytes(b"IQ== 0\n")
            return load("my.tiktoken")
        return tok

    monkeypatch.setattr(Tokenizer, "load", stand_in)
    line = ("eval", "run", "--against", "gpt2.tiktoken", "my.tiktoken")
    assert command(*line, "--pattern", "cl100k")[0] == 0
    assert opened == [("tokenizer", None), ("gpt2.tiktoken", None), ("my.tiktoken", None), ("my.tiktoken", "cl100k")]
    code, _, err = command(*line)
    assert (code, "a rank file doesn't say its split pattern" in err) == (2, True)


@pytest.mark.skipif(not RANKS, reason="needs the rank files of GPT-2 and GPT-4 in a folder named by NUTSHELL_RANKS")
def test_gpt2_and_gpt4_make_the_tokens_that_tiktoken_makes(command, tok):
    tiktoken = pytest.importorskip("tiktoken")
    from tiktoken.load import load_tiktoken_bpe

    code, out, err = command("eval", "run", "--ranks", RANKS, "--json")
    assert code == 0, err
    result = json.loads(out)
    for known in tools.KNOWN:
        file = tools.find_ranks(known, [Path(RANKS)])
        pattern = Tokenizer.load(file, known.pattern).pattern
        peer = tiktoken.Encoding(known.label, pat_str=pattern, mergeable_ranks=load_tiktoken_bpe(str(file)), special_tokens={})
        for name, (text,) in tools.samples().items():
            assert result["texts"][name]["tokens"][known.label] == len(peer.encode_ordinary(text))
