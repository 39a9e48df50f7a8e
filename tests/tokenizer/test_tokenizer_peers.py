"""The same ids as the libraries that others use: `tokenizers` on the saved file, tiktoken on the same ranks."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nutshell.tokenizer import SPECIAL_TOKENS, Tokenizer, render

tiktoken = pytest.importorskip("tiktoken")
tokenizers = pytest.importorskip("tokenizers")

PATTERNS = ("nanochat", "gpt2", "cl100k", "o200k", "qwen2")
# Each library has its own version of Unicode, so only characters that have long been assigned.
KNOWN = st.characters(exclude_categories=["Cs", "Cn"])
TEXT = st.one_of(
    st.text(KNOWN, max_size=60),
    st.text(st.sampled_from("aB1 \t\n\r'!sSlLvetdmſée漢\u0301½\u00a0\u0085\u3000/"), max_size=60),
    st.builds(lambda letter, count: letter * count, st.sampled_from("a1 \n!漢"), st.integers(1, 400)),
)
FIXED = [
    "",
    " ",
    "\n\n  \n x  ",
    "'S 'll 'VE 'ſ don'T",
    "a\u0301b\u0301 1½2Ⅷ٣",
    "\x00\x01\x1c\x85\u180e\u200b\ufeff",
    "👩‍👩‍👧 漢字、かな",
    "<|bos|> plain <|user_start|>",
]


@pytest.fixture(scope="module")
def trained():
    corpus = ["It's 12345 words; don't they'll WE'VE!\n\n  über  漢字 naïve ABCdef\r\n", "the theatre there 'tis  x"] * 3
    return {name: Tokenizer.train(corpus, vocab_size=500, pattern=name) for name in PATTERNS}


@pytest.fixture(scope="module")
def theirs(trained, tmp_path_factory):
    opened = {}
    for name, tok in trained.items():
        folder = tmp_path_factory.mktemp(name)
        tok.save(folder)
        opened[name] = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        opened[name].encode_special_tokens = True  # text that spells a special token stays text, as with us
    return opened


@pytest.fixture(scope="module")
def tik(trained):
    def encoding(name, tok):
        ranks = {tok.token_bytes(id): id for id in range(tok.bos_id)}
        return tiktoken.Encoding(name, pat_str=tok.pattern, mergeable_ranks=ranks, special_tokens=tok.special_tokens)

    return {name: encoding(name, tok) for name, tok in trained.items()}


def assert_same(name, trained, theirs, tik, text):
    ids = trained[name].encode(text)
    assert ids == tik[name].encode_ordinary(text)
    assert ids == theirs[name].encode(text).ids
    assert trained[name].decode(ids) == theirs[name].decode(ids) == tik[name].decode(ids) == text


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("text", FIXED)
def test_fixed_texts(name, trained, theirs, tik, text):
    assert_same(name, trained, theirs, tik, text)


@pytest.mark.parametrize("name", PATTERNS)
@given(text=TEXT)
def test_any_text(name, trained, theirs, tik, text):
    assert_same(name, trained, theirs, tik, text)


def test_the_saved_vocabulary_and_special_tokens(trained, theirs):
    for name, tok in trained.items():
        assert theirs[name].get_vocab_size() == tok.vocab_size
        for special in SPECIAL_TOKENS:
            assert theirs[name].token_to_id(special) == tok.special_id(special)


def test_real_text_in_many_languages(real_text):
    files = sorted((real_text / "tok").glob("*.txt"))
    texts = [file.read_text(encoding="utf-8")[:40_000] for file in files]
    for name in PATTERNS:
        tok = Tokenizer.train(texts, vocab_size=2000, pattern=name)
        ranks = {tok.token_bytes(id): id for id in range(tok.bos_id)}
        peer = tiktoken.Encoding(name, pat_str=tok.pattern, mergeable_ranks=ranks, special_tokens={})
        for text in texts:
            assert tok.encode(text) == peer.encode_ordinary(text)


def test_the_chat_template_gives_the_layout_of_render(trained, tmp_path):
    jinja2 = pytest.importorskip("jinja2")
    tok = trained["nanochat"]
    tok.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["bos_token"] == "<|bos|>"
    assert config["eos_token"] == "<|assistant_end|>"
    opened = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 12*3?"},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Let me"},
                {"type": "text", "text": " see: "},
                {"type": "python", "text": "12*3"},
                {"type": "python_output", "text": "36"},
                {"type": "text", "text": "It's 36."},
            ],
        },
        {"role": "user", "content": [{"type": "text", "text": "Tha"}, {"type": "text", "text": "nks"}]},
    ]
    empty_system = [{"role": "system", "content": ""}, *messages[1:]]
    # transformers sets trim_blocks and lstrip_blocks, others set neither.
    for options in ({}, {"trim_blocks": True, "lstrip_blocks": True}):
        template = jinja2.Environment(**options).from_string(config["chat_template"])
        for conversation in (messages, messages[1:], empty_system, messages[:2], messages[:3]):
            spelled = template.render(messages=conversation)
            ids, _ = render(conversation, tok)
            assert spelled == tok.decode(ids, special=True)
            assert opened.encode(spelled).ids == ids
            assert template.render(messages=conversation, add_generation_prompt=True) == spelled + "<|assistant_start|>"
