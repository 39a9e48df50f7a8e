import hashlib
import os
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nutshell.tokenizer import SPECIAL_TOKENS, Tokenizer

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
BYTES = Tokenizer([])
"""Only bytes and special tokens: every text can be spelled in it, and every cut through a character occurs."""


def test_layout_of_the_vocabulary(tok):
    assert tok.vocab_size == 420
    assert tuple(tok.special_tokens) == SPECIAL_TOKENS
    assert list(tok.special_tokens.values()) == list(range(411, 420))
    assert tok.bos_id == tok.special_id("<|bos|>") == 411
    assert [tok.token_bytes(id) for id in (0, 97, 255, 411)] == [b"\0", b"a", b"\xff", b""]
    lengths = tok.token_byte_lengths()
    assert lengths.dtype == np.int64
    assert lengths.tolist() == [len(tok.token_bytes(id)) for id in range(420)]
    assert lengths[411:].sum() == 0
    assert lengths[:411].min() == 1


@given(ANY_TEXT)
def test_decode_inverts_encode(tok, text):
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    assert tok.decode_bytes(ids) == text.encode()
    assert tok.token_byte_lengths()[ids].sum() == len(text.encode())
    assert all(type(id) is int and id < tok.bos_id for id in ids)


@given(st.lists(ANY_TEXT, max_size=8))
def test_a_batch_is_its_texts_one_after_the_other(tok, texts):
    flat, offsets = tok.encode_batch(texts)
    assert (flat.dtype, offsets.dtype) == (np.uint32, np.int64)
    assert [flat[a:b].tolist() for a, b in pairwise(offsets)] == [tok.encode(t) for t in texts]
    assert offsets[0] == 0
    assert offsets[-1] == len(flat)
    assert tok.decode(flat) == "".join(texts)


def test_batches_do_not_depend_on_threads_and_share_one_long_text(tok):
    text = "It's one long text, 12345 words\n\n  of every kind: 漢字 ..." * 20_000
    one, offsets = tok.encode_batch([text, "", text], threads=1)
    two, offsets_two = tok.encode_batch((text, "", text), threads=4)
    assert np.array_equal(one, two)
    assert np.array_equal(offsets, offsets_two)
    assert offsets[1] == offsets[2] == len(tok.encode(text))
    assert one.flags.writeable


def test_text_that_spells_a_special_token_is_plain_text(tok):
    for name in SPECIAL_TOKENS:
        ids = tok.encode(f"a{name}b")
        assert max(ids) < tok.bos_id
        assert tok.decode(ids) == f"a{name}b"
    named = tok.encode("<|bos|>hi<|user_end|>", special=["<|bos|>"])
    assert named == [tok.bos_id, *tok.encode("hi<|user_end|>")]
    assert tok.decode(named) == "hi<|user_end|>"
    assert tok.decode(named, special=True) == "<|bos|>hi<|user_end|>"
    with pytest.raises(ValueError, match=r"'<\|eos\|>' is not a special token; there are <\|bos\|>"):
        tok.encode("hi", special=["<|eos|>"])


@given(ANY_TEXT, st.integers(0, 5), st.booleans())
def test_a_stream_gives_whole_characters_and_all_of_them(tok, text, specials, bytewise):
    tok = BYTES if bytewise else tok
    ids = tok.encode(text)
    for index in range(specials):
        ids.insert(index * 2, tok.bos_id + index)
    stream = tok.stream()
    pieces = [stream.push(id) for id in ids]
    assert "".join(pieces) == text
    assert stream.flush() == ""


@given(st.binary(max_size=40))
def test_a_stream_of_broken_bytes_equals_decode(data):
    stream = BYTES.stream()
    assert "".join(stream.push(byte) for byte in data) + stream.flush() == BYTES.decode(list(data))
    assert stream.push(97) == "a"


def test_a_stream_holds_back_a_started_character():
    stream = BYTES.stream()
    assert [stream.push(byte) for byte in "é🙂".encode()] == ["", "é", "", "", "", "🙂"]
    assert stream.push(0xE2) == ""
    assert stream.flush() == "\ufffd"


def test_save_and_load(tok, tmp_path):
    tok.save(tmp_path / "a")
    for place in (tmp_path / "a", str(tmp_path / "a"), tmp_path / "a" / "tokenizer.json"):
        loaded = Tokenizer.load(place)
        assert loaded.fingerprint == tok.fingerprint
        assert loaded.special_tokens == tok.special_tokens
        assert loaded.pattern == tok.pattern
        assert loaded.merges == tok.merges
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert tok.fingerprint == hashlib.sha256((tmp_path / "a" / "tokenizer.json").read_bytes()).hexdigest()
    assert tok.fingerprint != BYTES.fingerprint
    assert Tokenizer(tok.merges[:9], "gpt2").fingerprint != Tokenizer(tok.merges[:9], "qwen2").fingerprint


@pytest.mark.parametrize("text", ["ab\ud800cd", "\udfff"])
def test_lone_surrogates_are_refused_with_their_place(tok, text):
    place = rf"lone surrogate U\+(D800|DFFF) at character {len(text) // 2 if len(text) > 1 else 0}"
    with pytest.raises(ValueError, match=f"the text holds the {place}"):
        tok.encode(text)
    with pytest.raises(ValueError, match=f"text 1 of the batch holds the {place}"):
        tok.encode_batch(["fine", text])
    with pytest.raises(ValueError, match="holds the lone surrogate"):
        Tokenizer.train(["fine", text], vocab_size=300)
    with pytest.raises(ValueError, match="holds the lone surrogate"):
        tok.split(text)


def test_other_wrong_input(tok, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; give a folder that holds a tokenizer\.json"):
        Tokenizer.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"the text is 7 \(int\); it must be a str"):
        tok.encode(7)
    with pytest.raises(ValueError, match=r"text 1 of the batch is None \(NoneType\)"):
        tok.encode_batch(["a", None])
    with pytest.raises(ValueError, match="takes a list of texts, not one str"):
        tok.encode_batch("text")
    for wrong in ([420], np.array([420], dtype=np.uint32), np.array([3, 420])):
        with pytest.raises(ValueError, match="id 420 is not in the vocabulary: accepted are 0 to 419"):
            tok.decode(wrong)
    for wrong in ([1, -1], [1, "x"], [1, None], [1, 1 << 40], [1, 2.5], np.array([1, -1]), np.array([1.0, 2.5])):
        with pytest.raises(ValueError, match="is not a token id; accepted are 0 to 419"):
            tok.decode(wrong)
    for wrong in (-1, 420):
        with pytest.raises(ValueError, match=f"id {wrong} is not in the vocabulary"):
            tok.token_bytes(wrong)
        with pytest.raises(ValueError, match=f"id {wrong} is not in the vocabulary"):
            tok.stream().push(wrong)
    with pytest.raises(ValueError, match=r"merge 0 joins the ids 97 and 256"):
        Tokenizer([(97, 256)])


def test_decode_takes_any_integers(tok):
    ids = tok.encode("any integers")
    for kind in (tuple, np.array, lambda ids: np.array(ids, dtype=np.int16), lambda ids: iter(ids)):
        assert tok.decode(kind(ids)) == "any integers"
    assert tok.decode([]) == tok.decode(np.array([], dtype=np.uint32)) == ""


def test_encoding_works_in_a_child_made_by_fork():
    """The threads of a parent's pool don't exist in its child; waiting for them would hang forever."""
    program = """
import os, sys
from nutshell.tokenizer import Tokenizer
tok = Tokenizer([(97, 98)])
texts = ["ab" * 100_000 + " "] * 8
before = tok.encode_batch(texts)[0]
child = os.fork()
if child == 0:
    os._exit(0 if (tok.encode_batch(texts)[0] == before).all() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], timeout=60, check=False)
    assert done.returncode == 0


def test_long_text_without_spaces_is_near_linear(tok):
    def seconds(length):
        text = "the" * (length // 3)
        started = time.perf_counter()
        ids = tok.encode(text)
        spent = time.perf_counter() - started
        assert tok.decode(ids) == text
        return spent

    seconds(100_000)
    assert seconds(4_000_000) < 20 * 4 * seconds(1_000_000) + 1
