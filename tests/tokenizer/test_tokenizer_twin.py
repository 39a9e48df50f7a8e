"""The Rust core against its slow twin in Python."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nutshell.tokenizer import Tokenizer, reference

# Characters that this Python's Unicode tables know; newer ones may have got a category since.
KNOWN = st.characters(exclude_categories=["Cs", "Cn"])
TEXT = st.one_of(
    st.text(KNOWN, max_size=40),
    st.text(st.sampled_from("ab"), max_size=40),
    st.text(st.sampled_from("aB1 \t\n\r'!sſlée漢\u0301½\u00a0/"), max_size=40),
    st.lists(st.sampled_from(["the", " the", "there", "\n\n", " 123", "it's", "!?\n", "  "]), max_size=20).map("".join),
)


@given(TEXT)
def test_split(text):
    assert Tokenizer([]).split(text) == reference.split_nanochat(text)


@given(st.lists(TEXT, max_size=6).filter(any), st.integers(0, 60))
def test_train_and_encode(texts, merge_count):
    tok = Tokenizer.train(texts, vocab_size=265 + merge_count)
    assert list(tok.merges) == reference.train(texts, merge_count)
    for text in texts:
        ids = tok.encode(text)
        assert ids == reference.encode(text, tok.merges)
        assert reference.decode(ids, tok.merges) == text


@given(st.lists(TEXT, min_size=1, max_size=6).filter(any), TEXT)
def test_encode_text_that_was_not_trained_on(texts, text):
    tok = Tokenizer.train(texts, vocab_size=300)
    assert tok.encode(text) == reference.encode(text, tok.merges)


@given(st.lists(st.tuples(st.integers(97, 99), st.integers(97, 99)), unique=True, max_size=9), st.data())
def test_encode_with_merges_in_any_order(first, data):
    """Merge lists that no training would give: the short cuts of the core must still change nothing."""
    merges = list(first)
    spelled = {bytes(pair) for pair in merges}
    words = [bytes([byte]) for byte in range(256)] + [bytes(pair) for pair in merges]
    for _ in range(8):
        left, right = (data.draw(st.sampled_from([97, 98, 99, *range(256, 256 + len(merges))])) for _ in range(2))
        if words[left] + words[right] not in spelled and (left, right) not in merges:
            merges.append((left, right))
            words.append(words[left] + words[right])
            spelled.add(words[-1])
    tok = Tokenizer(merges)
    text = data.draw(st.text("abc", max_size=150))
    assert tok.encode(text) == reference.encode(text, merges)


@pytest.mark.parametrize("vocab_size", [265, 300, 800])
def test_a_page_of_text(vocab_size):
    page = "She sells sea shells by the sea shore; the shells she sells are sea shells, I'm sure.\n" * 3
    page += "\n".join(f"{number} x {number} = {number * number}" for number in range(60))
    merges = reference.train([page], vocab_size - 265)
    assert list(Tokenizer.train([page], vocab_size=vocab_size).merges) == merges
    assert Tokenizer(merges).encode(page) == reference.encode(page, merges)


def test_doctests():
    import doctest

    assert doctest.testmod(reference).failed == 0
