"""Runs `nutshell tokenizer ...` in an empty folder, beside a run with a small tokenizer."""

from pathlib import Path

import pytest

from nutshell.tokenizer import Tokenizer


@pytest.fixture
def command(run_command, tmp_path, monkeypatch):
    """command("encode", "run", "text", stdin=...) runs a verb of `nutshell tokenizer`."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "no-cache"))
    for name in ("NUTSHELL_RANKS", "NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    return lambda *arguments, stdin=None: run_command(["tokenizer", *arguments], stdin)


@pytest.fixture
def tok(tmp_path):
    tok = Tokenizer.train(["the cat sat on the mat, naïve café"], vocab_size=275)
    tok.save(tmp_path / "run" / "tokenizer")
    return tok


@pytest.fixture
def terminal(monkeypatch):
    """Standard output passes for a terminal."""
    monkeypatch.setattr("_pytest.capture.EncodedFile.isatty", lambda self: True, raising=False)
    monkeypatch.setattr("_pytest.capture.CaptureIO.isatty", lambda self: True, raising=False)


@pytest.fixture
def refused(command, tok):
    """Checks that a command line gives one message with exit code 2 and writes nothing."""

    def check(line: str, message: str) -> None:
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
        assert message in err
        assert "Traceback" not in err + out
        assert sorted(Path().rglob("*")) == before

    return check
