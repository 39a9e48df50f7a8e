"""`nutshell tokenizer ...`: what it prints, its JSON, and one clear message with exit code 2 for bad input."""

import io
import json
import sys
from pathlib import Path

import pytest

from nutshell import cli
from nutshell.tokenizer import Tokenizer, tools

TEXT = "the cat sat on the mat, naïve café"


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs a command in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "no-cache"))
    for name in ("NUTSHELL_RANKS", "NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str, stdin: bytes | None = None) -> tuple[int, str, str]:
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        try:
            cli.main(["tokenizer", *arguments])
            code = 0
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def tok(tmp_path):
    tok = Tokenizer.train([TEXT], vocab_size=275)
    tok.save(tmp_path / "run" / "tokenizer")
    return tok


@pytest.fixture
def terminal(monkeypatch):
    """Standard output passes for a terminal."""
    monkeypatch.setattr("_pytest.capture.EncodedFile.isatty", lambda self: True, raising=False)
    monkeypatch.setattr("_pytest.capture.CaptureIO.isatty", lambda self: True, raising=False)


# ---- encode, decode ------------------------------------------------------------------------------------------------


def test_encode_prints_ids_of_whatever_holds_a_tokenizer(command, tok):
    ids = tok.encode(TEXT)
    for folder in ("run", "run/tokenizer", "run/tokenizer/tokenizer.json"):
        assert command("encode", folder, TEXT) == (0, " ".join(map(str, ids)) + "\n", "")
    code, out, err = command("encode", "run", TEXT, "--json")
    assert (code, json.loads(out)) == (0, {"ids": ids})
    assert err.split() == [str(id) for id in ids]


def test_text_comes_to_the_byte_from_files_and_standard_input(command, tok):
    content = "the cat\r\nsat on\rthe mat\n"
    Path("a.txt").write_bytes(content.encode())
    ids = tok.encode(content)
    for arguments in (("--file", "a.txt"), ("-",), ("--file", "-")):
        code, out, _ = command("encode", "run", *arguments, "--json", stdin=content.encode())
        assert (code, json.loads(out)["ids"]) == (0, ids)
    assert json.loads(command("encode", "run", "--json", "--", "-5")[1])["ids"] == tok.encode("-5")


def test_special_tokens_only_where_named(command, tok):
    text = "<|bos|>the cat<|user_end|>"
    cases = {(): tok.encode(text), ("--special", "<|bos|>"): tok.encode(text, special=["<|bos|>"])}
    cases["--special", "<|bos|>", "--special", "<|user_end|>"] = tok.encode(text, special=tok.special_tokens)
    cases["--special", "all"] = tok.encode(text, special=tok.special_tokens)
    for flags, ids in cases.items():
        assert json.loads(command("encode", "run", *flags, text, "--json")[1])["ids"] == ids
        assert json.loads(command("encode", "run", text, *flags, "--json")[1])["ids"] == ids
    assert cases["--special", "all"][0] == tok.bos_id


def test_decode_takes_what_encode_prints(command, tok):
    text = "<|bos|>the café"
    code, plain, _ = command("encode", "run", text, "--special", "all")
    assert code == 0
    _, as_json, _ = command("encode", "run", text, "--special", "all", "--json")
    Path("ids.txt").write_text(as_json)
    ids = plain.split()
    given = [ids, ["-"], ["--file", "ids.txt"], [",".join(ids)]]
    for arguments in given:
        for stdin in (plain.encode(), as_json.encode(), f"[{', '.join(ids)}]".encode()):
            assert command("decode", "run", *arguments, stdin=stdin) == (0, "the café\n", "")
            assert command("decode", "run", *arguments, "--spell-special", stdin=stdin)[1] == f"{text}\n"
    assert json.loads(command("decode", "run", *ids, "--json")[1]) == {"text": "the café"}


# ---- show ----------------------------------------------------------------------------------------------------------


def test_show_without_a_terminal_separates_tokens(command, tok):
    code, out, _ = command("show", "run", "the mat")
    assert code == 0
    assert out == f"{tools.show(tok, 'the mat', colour=False)}\n\n{len(tok.encode('the mat'))} tokens, 7 bytes, " + (
        f"{7 / len(tok.encode('the mat')):.2f} bytes per token\n"
    )
    assert "│" in out
    assert command("show", "run", "t")[1] == "t\n\n1 token, 1 byte, 1.00 bytes per token\n"
    assert command("show", "run", "")[:2] == (0, "\n\n0 tokens, 0 bytes, 0.00 bytes per token\n")


@pytest.mark.parametrize(
    ("environment", "flags", "coloured"),
    [
        ({}, (), True),
        ({"NO_COLOR": "1"}, (), False),
        ({"NO_COLOR": ""}, (), True),  # https://no-color.org: only if not empty
        ({"TERM": "dumb"}, (), False),
        ({}, ("--color", "never"), False),
        ({"NO_COLOR": "1"}, ("--color", "always"), True),
    ],
)
def test_show_on_a_terminal_respects_no_color(command, tok, terminal, monkeypatch, environment, flags, coloured):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for more in ((), ("--ids",)):
        code, out, _ = command("show", "run", "the cat", *flags, *more)
        assert (code, "\x1b[" in out) == (0, coloured)


def test_show_ids_and_json(command, tok):
    code, out, _ = command("show", "run", "<|bos|>the cat", "--ids", "--special", "<|bos|>")
    assert code == 0
    first, second = out.split("\n")[:2]
    assert first.startswith("<|bos|> the")
    assert [int(id) for id in second.split()] == tok.encode("<|bos|>the cat", special=["<|bos|>"])
    code, out, err = command("show", "run", "the 漢", "--json")
    shown = json.loads(out)
    assert (code, list(shown), shown["ids"], shown["bytes"]) == (0, ["ids", "tokens", "bytes"], tok.encode("the 漢"), 7)
    assert shown["tokens"][-1] == r"\xa2"
    assert "│" in err


# ---- eval ----------------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr("nutshell.tokenizer_cli.compare.HEAD_BYTES", 10)
    Path("a.txt").write_text("漢" * 20, encoding="utf-8")
    Path("b.jsonl").write_text('{"text": "12345678"}\n' * 5)
    texts = json.loads(command("eval", "run", "a.txt", "b.jsonl", "--json")[1])["texts"]
    assert (texts["a.txt"]["bytes"], texts["b.jsonl"]["bytes"]) == (9, 16)


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


# ---- train ---------------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(cli, "_tokenizer_train", lambda arguments: seen.append(arguments))
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
    "cut x": "nutshell tokenizer cut: unknown. Accepted: train, encode, decode, show, eval.",
    "encode nowhere text": "nowhere does not exist",
    "encode run": "give one of: TEXT as an argument, - for standard input, or --file PATH",
    "encode run text --file a.txt": "give one of: TEXT as an argument",
    "encode run --file nowhere.txt": "nowhere.txt does not exist",
    "encode run --file folder": "folder is a folder; give a file",
    "encode run --file latin.txt": "latin.txt is not UTF-8 text (byte 3 is 0xe9); convert it",
    "encode run - ": "standard input is not UTF-8 text (byte 1 is 0xff)",
    "encode run text --special <|eos|>": "'<|eos|>' is not a special token; there are <|bos|>, <|user_start|>",
    "encode run text --sepcial <|bos|>": "unrecognized arguments: --sepcial",
    "encode a.json text": "a.json: not such a file",
    "show run": "give one of: TEXT as an argument",
    "show run text --special nope": "'nope' is not a special token",
    "show run text --color sometimes": "invalid choice: 'sometimes'",
    "decode run": "give one of: ID as an argument, - for standard input, or --file PATH",
    "decode run one": "'one' is not a token id; give whole numbers",
    "decode run 1.5": "'1.5' is not a token id",
    "decode run 275": "id 275 is not in the vocabulary: accepted are 0 to 274",
    "decode run -- -1": "-1 is not a token id; accepted are 0 to 274",
    "decode run 99999999999": "99999999999 is not a token id",
    "decode run --file a.json": 'expected token ids, or the JSON object with "ids" that encode --json prints',
    "decode nowhere 1": "nowhere does not exist",
    "eval nowhere": "nowhere does not exist",
    "eval run nowhere.txt": "nowhere.txt does not exist",
    "eval run empty.txt": "empty.txt holds no text to measure",
    "eval run latin.txt": "latin.txt is not UTF-8 text",
    "eval run --against nowhere": "nowhere does not exist",
    "eval run --ranks nowhere": "--ranks is nowhere, which is not a folder; give the one with gpt2.tiktoken",
    "train --out new": "give text to train on (.txt, .jsonl, .parquet files or folders of them), or a recipe (recipes/demo)",
    "train": "give text to train on",
    "train a.txt": "give --out FOLDER, where the tokenizer is written",
    "train nowhere.txt --out new": "nowhere.txt does not exist",
    "train nowhere.toml --out new": "recipe nowhere.toml not found",
    "train folder --out new": "no data file in the folder folder",
    "train a.json --out new": "a.json has suffix '.json'; accepted are .txt, .jsonl, .parquet",
    "train empty.txt --out new": "there is no text to train a tokenizer on",
    "train latin.txt --out new": "latin.txt is not UTF-8",
    "train late.jsonl --out new": 'late.jsonl, line 2: expected an object with a string "text"',
    "train bad.parquet --out new": "bad.parquet can't be read as Parquet",
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
def test_bad_input_gives_one_message_and_exit_code_2_and_writes_nothing(command, tok, line):
    Path("a.txt").write_text("some text")
    Path("a.json").write_text('{"a": 1}')
    Path("empty.txt").touch()
    Path("latin.txt").write_bytes(b"caf\xe9 au lait")
    Path("late.jsonl").write_text('{"text": "one"}\n{"words": "x"}\n')
    Path("bad.parquet").write_bytes(b"PAR1 no")
    Path("folder").mkdir()
    Path("planned").mkdir()
    Path("planned/plan.json").write_text("{}")
    before = sorted(Path().rglob("*"))
    code, out, err = command(*line.split(), stdin=b"a\xff")
    assert code == 2, err
    assert BAD[line] in err
    assert "Traceback" not in err + out
    assert sorted(Path().rglob("*")) == before


def test_a_wrong_ranks_folder_in_the_environment_is_named(command, tok, monkeypatch):
    monkeypatch.setenv("NUTSHELL_RANKS", "nowhere")
    code, _, err = command("eval", "run")
    assert code == 2
    assert "NUTSHELL_RANKS is nowhere, which is not a folder" in err


def test_each_verb_says_in_its_help_what_it_takes(command):
    for verb, words in {
        "train": ("RECIPE", "--vocab-size N", "--force", ".parquet"),
        "encode": ("--special NAME", "--file PATH", "--json"),
        "decode": ("--spell-special", "--file PATH"),
        "show": ("--ids", "NO_COLOR", "--color"),
        "eval": ("--against PATH", "--ranks FOLDER", "nothing is downloaded"),
    }.items():
        code, out, _ = command(verb, "--help")
        assert code == 0
        for word in words:
            assert word in out
