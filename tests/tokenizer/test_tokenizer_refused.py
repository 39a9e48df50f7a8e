"""Tokenizer files that are not supported: refused with what was found and what is supported."""

import base64
import json

import pytest

from nutshell.tokenizer import Tokenizer

BYTES = {id: bytes([id]) for id in range(256)}


def rank_file(tokens):
    return b"".join(base64.b64encode(token) + b" %d\n" % id for id, token in tokens.items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"{", "it is not JSON: EOF while parsing"),
        (b"\n\x0e\n\x05<unk>\x15", "it starts with .*which is neither JSON nor a line of base64 and rank"),
        (b"version https://git-lfs.github.com/spec/v1\n", "fetch the file itself with `git lfs pull`"),
        (b"#version: 0.2\nh e\n", "it starts with .*neither JSON nor a line of base64"),
        (rank_file(BYTES) + b"YWI 256\n", 'line 257 is "YWI 256", not base64 and a rank'),
        (rank_file(BYTES) + b"YWI= -1\n", 'line 257 is "YWI= -1", not base64 and a rank'),
        (rank_file(BYTES) + b"YWI= 999999999\n", r"line 257 has the rank 999999999; up to \d+ are supported"),
        (rank_file(BYTES) + b"YWI= 255\n", "line 257 has the rank 255, which an earlier line has"),
        (rank_file({**BYTES, 300: b"ab", 400: b"ab"}), 'the ranks 300 and 400 have the same token "ab"'),
        (rank_file(dict(list(BYTES.items())[1:])), "no token stands for the byte 0x00"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        Tokenizer.load(path, pattern=None if content[:1] == b"{" else "gpt2")
    assert str(raised.value).startswith(f"{path}: ")
    assert "supported are tokenizer.json files of byte-level BPE and tiktoken's rank files" in str(raised.value)


def split(regex, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def sequence(*parts):
    return {"type": "Sequence", "pretokenizers": list(parts)}


def added(content="<x>", id=420, special=True):
    return {"content": content, "id": id, "special": special}


LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
OWN_REGEX = {**LEVEL, "use_regex": True}
MODEL, PRE, ADDED = ("model",), ("pre_tokenizer",), ("added_tokens",)
SPACES = {"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated", "invert": False}
LOWERCASE = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}

# Where a sound file is changed, to what, and what is said about it.
REFUSED = [
    (MODEL, None, 'it is JSON without a "model", so not a tokenizer.json'),
    ((*MODEL, "vocab"), {"a": -1}, "it is not a tokenizer.json: invalid value: integer `-1`"),
    (MODEL, {"type": "Unigram", "vocab": [["a", 0.5]]}, "its model is Unigram, not BPE"),
    (MODEL, {"type": "WordPiece", "vocab": {"a": 1}}, "its model is WordPiece, not BPE"),
    ((*MODEL, "end_of_word_suffix"), "</w>", 'its model has the end_of_word_suffix "</w>"'),
    ((*MODEL, "continuing_subword_prefix"), "##", 'its model has the continuing_subword_prefix "##"'),
    ((*MODEL, "dropout"), 0.5, r"its model leaves out merges at random \(dropout 0.5\); set dropout to null"),
    ((*MODEL, "merges", 0), "a b c", 'the merge "a b c" is not two tokens with a space between them'),
    ((*MODEL, "merges", 0), ["a"], "a merge is not a list of two tokens"),
    ((*MODEL, "merges", 0), "zq qz", 'merge 0 joins "zq" and "qz", but "zq" is no token'),
    ((*MODEL, "merges", 0), "<pad> a", 'merge 0 joins .*but "<pad>" is an added token; supported are added tokens that'),
    ((*MODEL, "vocab", "h"), None, 'merge 1 joins .*, but "h" is no token'),
    ((*MODEL, "vocab", "Ā"), None, "no token stands for the byte 0x00; byte-level BPE has one for each"),
    ((*MODEL, "vocab", "▁the"), 900, r'the token "▁the" \(id 900\) is not spelled in GPT-2\'s alphabet of bytes'),
    ((*MODEL, "vocab", "a"), 5, "the tokens .* have the same id 5"),
    ((*MODEL, "vocab", "a"), 1 << 30, r'the token "a" has the id 1073741824; up to \d+ are supported'),
    (("normalizer",), {"type": "NFKC"}, "its normalizer is NFKC; supported are none and NFC"),
    (("normalizer",), LOWERCASE, "its normalizer is Lowercase; supported are"),
    (PRE, {"type": "Metaspace"}, "its pre-tokenizer is Metaspace; supported are ByteLevel alone, ByteLevel behind"),
    (PRE, sequence({"type": "Digits"}, OWN_REGEX), "its pre-tokenizer cuts digits in another way"),
    (PRE, sequence({"type": "Digits", "individual_digits": True}, LEVEL), "its pre-tokenizer cuts digits in another way"),
    (PRE, sequence(split("a"), sequence(split("b"), LEVEL)), "its pre-tokenizer is Split, Split, ByteLevel; supported"),
    (PRE, sequence(), "it has no pre-tokenizer; supported"),
    (PRE, LEVEL, r"its pre-tokenizer doesn't split text at all \(use_regex is false\); supported"),
    (PRE, sequence(split("a"), OWN_REGEX), r"its pre-tokenizer splits by two patterns \(use_regex is true\); supported"),
    (PRE, {**OWN_REGEX, "add_prefix_space": True}, r"puts a space before the text \(add_prefix_space\); .*must be false"),
    (PRE, sequence(split("a", "Removed"), LEVEL), 'behavior "Removed" and invert false; supported is "Isolated"'),
    (PRE, sequence(split("a", "Removed", True), LEVEL), 'behavior "Removed" and invert true; supported'),
    (PRE, sequence(SPACES, LEVEL), 'its pre-tokenizer splits at the text " "; supported is a regex'),
    (PRE, sequence(split(r"\s+$|\s"), LEVEL), r"has the anchor \^ or \$ \(write \\A or \\z\), which regex engines read in"),
    (PRE, sequence(split(r"\p{N}{1,3}+"), LEVEL), r"has \}\+ \(leave out the \+\), which regex engines read in"),
    (ADDED, [added("    ", special=False)], r'the added token "    " \(id 420\) is not special, so plain text would become'),
    (ADDED, [added(id=97)], 'the added token "<x>" has the id 97, but in the vocabulary that is "a"'),
    (ADDED, [added("<pad>")], 'the added token "<pad>" has the id 420, but in the vocabulary that is no token'),
    (ADDED, [added(id=1 << 30)], r'the added token "<x>" has the id 1073741824; up to \d+ are supported'),
    (ADDED, [added(), added("<y>")], 'the added tokens "<x>" and "<y>" have the same id 420'),
    (ADDED, [added(), added(id=421)], 'the added token "<x>" has the ids 420 and 421'),
]


@pytest.mark.parametrize(("where", "to", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_other_tokenizer_json_files_are_refused(tmp_path, where, to, message):
    tok = Tokenizer([(ord("t"), ord("e")), (ord("h"), 256)], "gpt2")
    tok.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    root = json.loads(path.read_bytes())
    root["model"]["vocab"]["<pad>"] = 300
    root["added_tokens"] = [added("<pad>", 300)]
    path.write_text(json.dumps(root), encoding="utf-8")
    assert Tokenizer.load(tmp_path).special_tokens == {"<pad>": 300}
    inner = root
    for key in where[:-1]:
        inner = inner[key]
    if to is None:
        del inner[where[-1]]
    else:
        inner[where[-1]] = to
    path.write_text(json.dumps(root), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as raised:
        Tokenizer.load(tmp_path)
    assert str(raised.value).startswith(f"{path}: ")


def test_a_tokenizer_json_says_its_pattern_itself(tok, tmp_path):
    tok.save(tmp_path)
    with pytest.raises(ValueError, match="says its split pattern itself; leave out `pattern`"):
        Tokenizer.load(tmp_path, pattern="gpt2")


def test_what_tokenizer_json_can_not_say_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match=r"holds '\{1,3\}\+', which the readers of tokenizer.json take for another thing"):
        Tokenizer([], r"\p{N}{1,3}+|\s").save(tmp_path)
    tok = Tokenizer.train(["<|bos|>"] * 5, vocab_size=300, pattern=r"\S+")
    with pytest.raises(ValueError, match=r"is spelled like the special token '<\|bos\|>'"):
        tok.save(tmp_path)
