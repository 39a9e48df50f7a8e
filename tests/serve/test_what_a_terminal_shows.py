"""F30: the terminal took the joiners out of Hindi, Persian and families of emoji."""

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nutshell.serve.terminal import Screen

STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")


def shown(text: str, styled: bool) -> str:
    out = io.StringIO()
    Screen(out, styled).write(text)
    return out.getvalue()


@pytest.mark.parametrize("text", ["क्‍ष", "می‌خواهم", "👨‍👩‍👧", "☁️", "☁︎", "한국어\tשלום\n"])
def test_f30_letters_stay_joined(text):
    assert shown(text, styled=True) == text


@given(st.text(st.one_of(st.characters(categories=["Cc", "Cf", "Zl", "Zp"]), st.sampled_from("a\u200c\u200d\ufe0f\n\x1b["))))
def test_nothing_steers_a_terminal_and_a_pipe_gets_all(text):
    """Escape sequences, texts that run backwards, line ends that a terminal makes up."""
    kept = {"\n", "\t", "\u200c", "\u200d"}
    assert all(sign in kept or unicodedata.category(sign) not in STEERING for sign in shown(text, styled=True))
    assert [sign for sign in shown(text, styled=True) if sign in "a["] == [sign for sign in text if sign in "a["]
    assert shown(text, styled=False) == text
