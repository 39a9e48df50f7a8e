"""Tokenizer files of other kinds: the same ids as the libraries that they come from."""

import base64
import json
import os
import random
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nutshell.tokenizer import Tokenizer, render

tiktoken = pytest.importorskip("tiktoken")
tokenizers = pytest.importorskip("tokenizers")

# Each library has its own version of Unicode, so only characters that have long been assigned.
KNOWN = st.characters(exclude_categories=["Cs", "Cn"])
TEXT = st.one_of(
    st.text(KNOWN, max_size=60),
    st.text(st.sampled_from("aB1 \t\n\r'!sSlLvetdmſée漢\u0301½\u00a0\u0085\u3000/<|>"), max_size=60),
    st.lists(st.sampled_from(["the", " there", "atre", "  ", "\n", "don't", "12", "漢字", "ab", "aab", "<|endoftext|>"])).map(
        "".join
    ),
    st.builds(lambda part, count: part * count, st.sampled_from(["a", "ab", "1", " ", "\n", "漢"]), st.integers(1, 300)),
)
CORPUS = [
    "It's 12345 words; don't they'll WE'VE!\n\n  über  漢字 naïve ABCdef\r\n",
    "the theatre there 'tis  x, the cat ran to the theatre. aaaaaaaa abababab aab",
    "def add(left, right):\n    return left + right  # 12345 + 678\n",
] * 3
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")
SINGLE = r"[^\s]+|\s"  # no scanner knows this one


def split(regex, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def byte_level(use_regex=False):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def sequence(*parts):
    return {"type": "Sequence", "pretokenizers": list(parts)}


@cache
def trained_text(regex):
    """A `tokenizer.json` trained by the `tokenizers` library: special tokens first, then the bytes in GPT-2's order."""
    pre = tokenizers.pre_tokenizers
    tok = tokenizers.Tokenizer(tokenizers.models.BPE())
    parts = [pre.ByteLevel(add_prefix_space=False, use_regex=regex is None)]
    if regex is not None:
        parts.insert(0, pre.Split(tokenizers.Regex(regex), "isolated"))
    tok.pre_tokenizer = pre.Sequence(parts)
    tok.decoder = tokenizers.decoders.ByteLevel()
    names = ["<|endoftext|>", "<pad>"]
    alphabet = sorted(pre.ByteLevel.alphabet())
    tok.train_from_iterator(
        CORPUS,
        tokenizers.trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, special_tokens=names, show_progress=False),
    )
    return tok.to_str()


def trained(regex=None):
    return json.loads(trained_text(regex))


def gpt2():
    """As GPT-2's first file: no type of model, empty affixes, an unknown token that never occurs."""
    root = trained()
    root["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    model = root["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    affixes = dict.fromkeys(("unk_token", "continuing_subword_prefix", "end_of_word_suffix"), "")
    root["model"] = {"dropout": None, **affixes, "fuse_unk": False, "vocab": model["vocab"], "merges": merges}
    return root


def qwen2():
    """NFC, single digits, added tokens after the vocabulary, some of them not special."""
    root = trained(QWEN2)
    root["normalizer"] = {"type": "NFC"}
    for token in root["added_tokens"]:
        del root["model"]["vocab"][token["content"]]
    root["model"]["vocab"] = {name: id - 2 for name, id in root["model"]["vocab"].items()}
    size = len(root["model"]["vocab"])
    names = ("<|endoftext|>", "<|im_start|>", "<think>")
    root["added_tokens"] = [
        {**root["added_tokens"][0], "id": size + index, "content": name, "special": name != "<think>"}
        for index, name in enumerate(names)
    ]
    return root


def llama3():
    """`ignore_merges`, tokens that no merge makes, and every way to cut a token listed as a merge."""
    root = trained(LLAMA3)
    model = root["model"]
    model["ignore_merges"] = True
    size = len(model["vocab"])
    model["vocab"].update(
        {name: size + index for index, name in enumerate(["Ġtheatres", "xyzzy", "abab", "12"]) if name not in model["vocab"]}
    )
    vocab, known = model["vocab"], sorted(model["vocab"], key=model["vocab"].get)
    model["merges"] = [
        [name[:cut], name[cut:]] for name in known for cut in range(1, len(name)) if name[:cut] in vocab and name[cut:] in vocab
    ]
    root["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    root["normalizer"] = {"type": "Sequence", "normalizers": []}
    return root


def smollm():
    """Single digits, then GPT-2's own pattern on what lies between them."""
    root = trained()
    root["pre_tokenizer"] = sequence({"type": "Digits", "individual_digits": True}, byte_level(use_regex=True))
    return root


def shuffled():
    """Ids in any order with holes between them; the normalizer and the pre-tokenizer in nested sequences."""
    root = trained(LLAMA3)
    vocab = root["model"]["vocab"]
    ids = dict(zip(vocab, random.Random(1).sample(range(700), len(vocab)), strict=True))
    root["model"]["vocab"] = ids
    for token in root["added_tokens"]:
        token["id"] = ids[token["content"]]
    root["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [{"type": "NFC"}]}]}
    root["pre_tokenizer"] = sequence(sequence(split(LLAMA3, "Removed", True)), sequence(sequence(), byte_level()))
    return root


def own_pattern():
    root = trained(SINGLE)
    root["truncation"] = None
    return root


KINDS = {kind.__name__: kind for kind in (gpt2, qwen2, llama3, smollm, shuffled, own_pattern)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("formats")


@cache
def opened(folder, kind):
    """Ours, theirs, and theirs on what we save."""
    place = folder / kind
    place.mkdir()
    text = json.dumps(
        KINDS[kind](), ensure_ascii=kind == "gpt2", sort_keys=kind == "qwen2", indent=1 if kind == "llama3" else None
    )
    (place / "their.json").write_text(text, encoding="utf-8")
    tok = Tokenizer.load(place / "their.json")
    tok.save(place)
    return tok, *(plain(tokenizers.Tokenizer.from_file(str(place / name))) for name in ("their.json", "tokenizer.json"))


def plain(peer):
    peer.encode_special_tokens = True  # text that spells a special token stays text, as with us
    return peer


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXT)
def test_tokenizer_json_gives_the_ids_of_the_library(folder, kind, text):
    tok, peer, saved = opened(folder, kind)
    ids = tok.encode(text)
    assert ids == peer.encode(text).ids == saved.encode(text).ids
    assert tok.decode(ids) == peer.decode(ids) == saved.decode(ids)
    flat, _ = tok.encode_batch([text, text])
    assert flat.tolist() == ids + ids


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_special_tokens_stay_when_saved(folder, kind):
    tok, peer, saved = opened(folder, kind)
    again = Tokenizer.load(folder / kind)
    assert again.fingerprint == tok.fingerprint
    assert again.special_tokens == tok.special_tokens
    for name, id in tok.special_tokens.items():
        assert id == peer.token_to_id(name) == saved.token_to_id(name)
        assert tok.token_bytes(id) == b""
    by_id = {id: name for name, id in peer.get_vocab().items()}
    assert by_id == {id: name for name, id in saved.get_vocab().items()}
    assert tok.vocab_size == max(by_id) + 1
    assert [tok.token_bytes(id) for id in range(tok.vocab_size) if id not in by_id] == [b""] * (tok.vocab_size - len(by_id))


def rank_file(tokens):
    return b"".join(base64.b64encode(token) + b" %d\n" % id for id, token in tokens.items())


@cache
def ranks(kind):
    """Tokens by id: as learned; in any order with holes, so that many tokens are never reached; and ones nobody learned."""
    tok = Tokenizer.train(CORPUS, vocab_size=420, pattern="cl100k")
    tokens = [tok.token_bytes(id) for id in range(tok.bos_id)]
    if kind != "learned":
        tokens += [
            b"theatres",
            b"xyzzy",
            b"aabb",
            b" \n ",
            b"aba",
            b"bab",
            b"abab\xe6",
            *(b" " * n for n in range(5, 40) if b" " * n not in tokens),
        ]
    ids = list(range(len(set(tokens))))
    if kind == "shuffled":
        ids = random.Random(2).sample(range(600), len(ids))
    return dict(zip(ids, dict.fromkeys(tokens), strict=True))


@cache
def opened_ranks(folder, kind, pattern):
    place = folder / f"{kind}-{pattern}"
    place.mkdir()
    tokens = ranks(kind)
    (place / "some.tiktoken").write_bytes(rank_file(tokens))
    tok = Tokenizer.load(place / "some.tiktoken", pattern=pattern)
    tok.save(place)
    peer = tiktoken.Encoding(
        kind, pat_str=tok.pattern, mergeable_ranks={token: id for id, token in tokens.items()}, special_tokens={}
    )
    return tok, peer, plain(tokenizers.Tokenizer.from_file(str(place / "tokenizer.json")))


@pytest.mark.parametrize("kind", ["learned", "extended", "shuffled"])
@pytest.mark.parametrize("pattern", ["gpt2", "o200k", SINGLE])
@given(text=TEXT)
def test_a_rank_file_gives_the_ids_of_tiktoken(folder, kind, pattern, text):
    tok, peer, saved = opened_ranks(folder, kind, pattern)
    ids = tok.encode(text)
    assert ids == peer.encode_ordinary(text) == saved.encode(text).ids
    assert tok.decode(ids) == peer.decode(ids) == text


AB = st.text("ab", max_size=40)


@given(st.lists(st.text("ab", min_size=2, max_size=6), unique=True, max_size=12), st.randoms(), st.lists(AB, max_size=8))
def test_any_tokens_in_any_order(tokens, random, texts):
    """Rank files that no training makes: tokens without a way to them, or with one over higher ranks."""
    tokens = [bytes([byte]) for byte in range(256)] + [token.encode() for token in tokens]
    random.shuffle(tokens)
    ours = Tokenizer._parse(rank_file(dict(enumerate(tokens))), "any", SINGLE)
    ranks = {token: id for id, token in enumerate(tokens)}
    peer = tiktoken.Encoding("any", pat_str=SINGLE, mergeable_ranks=ranks, special_tokens={})
    saved = tokenizers.Tokenizer.from_str(ours._json)
    for text in texts:
        assert ours.encode(text) == peer.encode_ordinary(text) == saved.encode(text).ids


@given(st.lists(st.text("ab", min_size=2, max_size=6), max_size=12), st.randoms(), st.booleans(), st.lists(AB, max_size=8))
def test_any_merges_in_any_order(tokens, random, whole, texts):
    """`tokenizer.json` files that no training makes: merges in any order, several for a token, some tokens without."""
    root = trained(SINGLE)
    names = [*(name for name in root["model"]["vocab"] if len(name) == 1), *dict.fromkeys(tokens)]
    root["model"] |= {"vocab": {name: id for id, name in enumerate(names)}, "ignore_merges": whole}
    merges = [[name[:cut], name[cut:]] for name in names for cut in range(1, len(name))]
    merges = [pair for pair in merges if all(part in names for part in pair) and random.random() < 0.8]
    random.shuffle(merges)
    root["model"]["merges"] = merges
    root["added_tokens"] = []
    content = json.dumps(root)
    ours, peer = Tokenizer._parse(content.encode(), "any"), tokenizers.Tokenizer.from_str(content)
    saved = tokenizers.Tokenizer.from_str(ours._json)
    for text in texts:
        assert ours.encode(text) == peer.encode(text).ids == saved.encode(text).ids


def test_a_rank_file_names_its_pattern_or_is_told_it(tmp_path):
    content = rank_file(ranks("learned"))
    for name, pattern in [
        ("gpt2.tiktoken", "gpt2"), ("p50k_base.tiktoken", "gpt2"), ("cl100k_base.tiktoken", "cl100k"),
        ("o200k_base.tiktoken", "o200k"), ("qwen.tiktoken", "qwen2"), ("llama3.model", LLAMA3),
    ]:  # fmt: skip
        (tmp_path / name).write_bytes(content)
        assert Tokenizer.load(tmp_path / name).pattern == Tokenizer([], pattern).pattern
        assert Tokenizer.load(tmp_path / name, pattern="nanochat").pattern == Tokenizer([]).pattern
    (tmp_path / "mine.tiktoken").write_bytes(content.replace(b"\n", b"\r\n\r\n") + b"= 500\n")
    with pytest.raises(ValueError, match=r'mine\.tiktoken: a rank file .*give the pattern .* for example pattern="cl100k"'):
        Tokenizer.load(tmp_path / "mine.tiktoken")
    tok = Tokenizer.load(tmp_path / "mine.tiktoken", pattern=r"\S+$|\S+|\s+")
    assert tok.encode("the\ntheatre") == Tokenizer.load(tmp_path / "gpt2.tiktoken").encode("the\ntheatre")
    assert (tok.vocab_size, tok.special_tokens, tok.token_bytes(500)) == (501, {}, b"")
    tok.save(tmp_path)  # Oniguruma's $ is the end of a line
    saved = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).pattern == r"\S+\z|\S+|\s+"
    assert saved.encode("the\ntheatre").ids == tok.encode("the\ntheatre")


@pytest.fixture(scope="module")
def transformers():
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("transformers")


def test_transformers_opens_what_we_save(transformers, tok, tmp_path):
    tok.save(tmp_path)
    for kind in (transformers.AutoTokenizer, transformers.PreTrainedTokenizerFast):
        peer = kind.from_pretrained(tmp_path)
        assert (peer.bos_token_id, peer.eos_token_id) == (tok.bos_id, tok.special_id("<|assistant_end|>"))
        assert len(peer) == tok.vocab_size
        for text in CORPUS:
            assert peer(text)["input_ids"] == tok.encode(text)
            assert peer.decode(tok.encode(text)) == text
        assert peer.convert_tokens_to_ids(list(tok.special_tokens)) == list(tok.special_tokens.values())
        parts = [{"type": "python", "text": "3*4"}, {"type": "python_output", "text": "12"}, {"type": "text", "text": " 12"}]
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is 3*4?"},
            {"role": "assistant", "content": parts},
        ]
        ids = peer.apply_chat_template(messages, tokenize=True, return_dict=False)
        assert ids == list(render(messages, tok)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_opens_what_we_save_of_others(transformers, folder, kind):
    tok, _, _ = opened(folder, kind)
    peer = transformers.AutoTokenizer.from_pretrained(folder / kind)
    assert peer.bos_token_id == peer.eos_token_id == tok.special_id("<|endoftext|>")
    assert peer.chat_template is None
    for text in CORPUS:
        assert peer(text, add_special_tokens=False)["input_ids"] == tok.encode(text)


REAL_RANKS = Path(os.environ.get("NUTSHELL_RANKS", "/nowhere"))


@pytest.mark.parametrize("name", ["gpt2", "p50k_base", "cl100k_base", "o200k_base", "qwen", "llama3"])
def test_published_rank_files(real_text, name, tmp_path):
    path = REAL_RANKS / f"{name}.tiktoken"
    if not path.is_file():
        pytest.skip(f"needs {name}.tiktoken in the folder that NUTSHELL_RANKS names")
    tok = Tokenizer.load(path)
    entries = [line.split() for line in path.read_bytes().splitlines() if line]
    peer = tiktoken.Encoding(
        name, pat_str=tok.pattern, mergeable_ranks={base64.b64decode(token): int(id) for token, id in entries}, special_tokens={}
    )
    tok.save(tmp_path)
    saved = plain(tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")))
    for text in real_texts(real_text):
        ids = tok.encode(text)
        assert ids == peer.encode_ordinary(text)
        assert ids == saved.encode(text).ids
        assert tok.decode(np.array(ids)) == text


@pytest.mark.parametrize("name", ["qwen2", "llama3"])
def test_published_tokenizer_json_files(real_text, name):
    path = REAL_RANKS / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"needs {name}.json in the folder that NUTSHELL_RANKS names")
    tok, peer = Tokenizer.load(path), plain(tokenizers.Tokenizer.from_file(str(path)))
    for text in real_texts(real_text):
        assert tok.encode(text) == peer.encode(text, add_special_tokens=False).ids


def real_texts(folder):
    return [file.read_text(encoding="utf-8")[:60_000] for file in sorted((folder / "tok").glob("*.txt"))]
