"""`nutshell tokenizer encode`, `decode` and `show`: what they print, their JSON, and what they refuse."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import nutshell
from nutshell.cli import tokens as tools

TEXT = "the cat sat on the mat, naïve café"


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


def test_a_reader_that_has_seen_enough_ends_the_command_quietly(command, tok):
    Path("a.txt").write_text("the cat " * 100_000)
    line = [sys.executable, "-m", "nutshell", "tokenizer", "encode", "run", "--file", "a.txt"]
    environment = {**os.environ, "PYTHONPATH": str(Path(nutshell.__file__).parents[1])}
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


# ---- show ----------------------------------------------------------------------------------------------------------


def test_show_without_a_terminal_separates_tokens(command, tok):
    code, out, _ = command("show", "run", "the mat")
    assert code == 0
    assert out == f"{tools.show(tok, tok.encode('the mat'), colour=False)}\n\n{len(tok.encode('the mat'))} tokens, 7 bytes, " + (
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
    "encode a.json text": "a.json: ",
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
}  # fmt: skip


@pytest.mark.parametrize("line", BAD)
def test_bad_input_gives_one_message_and_exit_code_2_and_writes_nothing(refused, line):
    refused(line, BAD[line])
