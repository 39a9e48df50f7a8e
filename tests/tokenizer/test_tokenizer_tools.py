import re

import pytest

from nutshell.tokenizer.tools import compression, show


def test_show_colours_each_token_and_keeps_the_text(tok):
    text = "the cat\n  sat"
    shown = show(tok, text)
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown).replace("⏎", "") == text
    assert shown.count("\x1b[30;48;5;") == len(tok.encode(text))
    assert show(tok, "") == ""


def test_show_spells_what_would_steer_the_terminal(tok):
    shown = re.sub(r"\x1b\[[0-9;]*m", "", show(tok, "\x1b[2J\r🜁"))
    assert shown == r"\x1b[2J\x0d\xf0\x9f\x9c\x81"


def test_compression_is_bytes_per_token(tok):
    texts = {"english": "the cat sat on the mat", "empty": "", "chinese": "漢字"}
    measured = compression(tok, texts)
    assert list(measured) == list(texts)
    for name, text in texts.items():
        assert measured[name] == pytest.approx(len(text.encode()) / max(len(tok.encode(text)), 1))
