"""`nutshell generate`: where the text comes from, what comes out, what is refused."""

import json
import os
import subprocess
import sys

import pytest
import torch

from nutshell import checkpoint
from nutshell.infer.engine import Engine
from nutshell.model.build import build_model
from nutshell.model.config import ModelConfig
from nutshell.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tok = Tokenizer.train(["once upon a time there was a café"] * 9, vocab_size=290)
    torch.manual_seed(0)
    shape = {"depth": 1, "width": 64, "heads": 2, "kv_heads": 2, "head_dim": 32, "context": 64, "bos_id": tok.bos_id}
    model = build_model(ModelConfig(vocab_size=tok.vocab_size, **shape))
    return checkpoint.save_model_folder(tmp_path_factory.mktemp("base") / "model", model, tok)


@pytest.fixture
def generate(folder, run_command):
    def run(*arguments, stdin=None):
        return run_command(["generate", str(folder), *map(str, arguments), "--device", "cpu", "--max-tokens", "6"], stdin)

    return run


def test_the_text_comes_from_a_flag_a_file_or_standard_input(generate, folder, tmp_path):
    (tmp_path / "text.txt").write_text("a café\n", encoding="utf-8-sig")
    expected = "a café\n" + Engine(*checkpoint.load(folder)).generate(["a café\n"], max_tokens=6, temperature=0)[0]
    for arguments in (["-p", "a café\n"], ["--file", tmp_path / "text.txt"], ["-"], ["--file", "-"]):
        code, out, _ = generate(*arguments, "--temperature", "0", stdin="a café\n".encode())
        assert (code, out) == (0, expected + "\n")


def test_a_text_is_read_as_utf8_whatever_the_locale_is(generate, folder):
    """Under LC_ALL=C Python hands over each byte beyond ASCII as half a surrogate."""
    said = generate("-p", "caf\udcc3\udca9", "--temperature", "0")
    assert said == generate("-p", "café", "--temperature", "0")
    code, _, err = generate("-p", "caf\udce9")
    assert (code, "lone surrogate U+DCE9" in err) == (2, True)
    _, expected, _ = generate("-", "--temperature", "0", stdin="café".encode())
    command = [sys.executable, "-m", "nutshell", "generate", str(folder), "-", "--device", "cpu", "--max-tokens", "6"]
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([*command, "--temperature", "0"], input="café".encode(), env=env, capture_output=True)
    assert (done.returncode, done.stdout) == (0, expected.encode("ascii", "backslashreplace")), done.stderr


def test_samples_differ_and_a_seed_repeats_them(generate):
    answers = [json.loads(generate("-p", "once", "--samples", 3, "--seed", seed, "--json")[1]) for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]
    assert answers[0]["prompt"] == "once"
    assert len({reply["text"] for reply in answers[0]["completions"]}) == 3
    assert all(reply["tokens"] <= 6 and reply["finish"] in ("stop", "length") for reply in answers[0]["completions"])
    assert generate("--samples", 2)[1].count("-" * 16) == 1, "without a text documents begin"


def test_a_base_model_is_scored_on_texts(folder, tmp_path, run_command):
    (tmp_path / "a.txt").write_text("once upon a time there was a café\n\n" * 20, encoding="utf-8")
    code, out, _ = run_command(["eval", str(folder), "--text", "a.txt", "--device", "cpu", "--json"])
    result = json.loads(out)
    tok = Tokenizer.load(folder)
    tokens = len(tok.encode("once upon a time there was a café\n\n" * 20))
    assert code == 0
    assert list(result) == ["text"]
    uniform = tokens * torch.tensor(float(tok.vocab_size)).log2() / (36 * 20)
    assert result["text"]["bpb"] == pytest.approx(float(uniform), rel=0.1), "a new model finds every token about as likely"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "a", "-"], "the text is given twice"),
        (["-"], "standard input is not UTF-8 text (byte 1 is 0xff)"),
        (["--file", "missing.txt"], "missing.txt"),
        (["-p", "a", "--samples", 0], "--samples is 0; accepted: 1 or more."),
        (["-p", "a", "--top-p", 0], "top_p is 0.0"),
        (["-p", "a " * 99], "accepted: at most 63, as the context holds 64 with the reply"),
    ],
)
def test_what_makes_no_sense_is_refused(generate, arguments, message):
    code, out, err = generate(*arguments, stdin=b"a\xff")
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
