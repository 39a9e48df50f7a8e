import re

import pytest

from nutshell.cli import tokens as tools
from nutshell.cli.tokens import Measured, compression, show, show_ids, spell, table


def plain(shown: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", shown)


# ---- show ----------------------------------------------------------------------------------------------------------


def test_show_colours_each_token_and_keeps_the_text(tok):
    text = "the cat\n  sat"
    shown = show(tok, text)
    assert plain(shown).replace("⏎", "") == text
    assert shown.count("\x1b[30;48;5;") == len(tok.encode(text))
    assert show(tok, "") == ""


def test_show_spells_what_would_steer_the_terminal(tok):
    shown = plain(show(tok, "\x1b[2J\r🜁"))
    assert shown == r"\x1b[2J\x0d\xf0\x9f\x9c\x81"


def test_without_colours_separators_stand_between_tokens(tok):
    text = "the cat\n\n  sat on the mat"
    shown = show(tok, text, colour=False)
    assert "\x1b" not in shown
    assert shown.replace("⏎", "").replace("│", "") == text
    # A line that follows a token's own line end needs no separator.
    cuts = [tok.token_bytes(id).decode() for id in tok.encode(text)]
    assert shown.count("│") == sum(not token.endswith("\n") for token in cuts[:-1])


def test_special_tokens_are_shown_by_name_only_where_asked_for(tok):
    text = "<|bos|>the cat"
    assert plain(show(tok, text)).startswith("<|bos|>")
    assert "60m<|bos|>" not in show(tok, text)
    shown = show(tok, text, special=["<|bos|>"])
    assert shown.startswith("\x1b[1;97;48;5;60m<|bos|>\x1b[0m")
    assert plain(shown) == text
    with pytest.raises(ValueError, match=r"'<\|eos\|>' is not a special token"):
        show(tok, text, special=["<|eos|>"])


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("width", [1, 20, 200])
def test_ids_stand_below_their_tokens(tok, colour, width):
    text = "<|bos|>the cat\n  sat, naïve 漢字"
    lines = plain(show_ids(tok, text, special=["<|bos|>"], colour=colour, width=width)).split("\n")
    assert [int(id) for line in lines[1::2] for id in line.split()] == tok.encode(text, special=["<|bos|>"])
    spelled = "".join(lines[0::2]).replace(" ", "").replace("·", "")
    assert spelled == "".join(spell(tok, id) for id in tok.encode(text, special=["<|bos|>"])).replace(" ", "").replace("\n", "⏎")
    assert width == 1 or max(map(len, lines)) <= width
    assert len(lines) % 2 == 0


def test_ids_begin_where_their_token_begins_even_below_wide_characters(tok):
    from rich.cells import cell_len

    first, second = show_ids(tok, "漢字 the cat", colour=False, width=200).split("\n")
    start = second.index(str(tok.encode(" the")[0]))
    assert cell_len(first[: first.index("·the")]) == start


def test_a_token_for_people(tok):
    assert spell(tok, tok.bos_id) == "<|bos|>"
    assert spell(tok, ord("a")) == "a"
    assert spell(tok, 0xE6) == r"\xe6"
    assert spell(tok, 0x1B) == r"\x1b"


# ---- compression ---------------------------------------------------------------------------------------------------


def test_compression_counts_utf8_bytes_and_tokens(tok):
    texts = {"english": ["the cat sat", " on the mat"], "empty": [], "chinese": ["漢字"]}
    measured = compression({"ours": tok}, texts)
    assert [text.name for text in measured] == list(texts)
    for text in measured:
        documents = texts[text.name]
        assert text.bytes == sum(len(document.encode()) for document in documents)
        assert text.tokens == {"ours": sum(len(tok.encode(document)) for document in documents)}
    assert measured[0].bytes_per_token("ours") == measured[0].bytes / measured[0].tokens["ours"]
    assert measured[1].bytes_per_token("ours") == 0.0
    assert measured[2].bytes == 6


def test_saved_is_the_share_of_the_others_tokens():
    measured = Measured("text", 1000, {"ours": 200, "larger": 160, "smaller": 400, "none": 0})
    assert measured.saved_percent("larger") == pytest.approx(-25)
    assert measured.saved_percent("smaller") == pytest.approx(50)
    assert measured.saved_percent("none") == 0.0


def test_the_table_is_aligned_and_coloured_by_who_is_better():
    measured = [
        Measured("新闻", 1000, {"ours": 200, "more": 400, "fewer": 160}),
        Measured("b", 2_000_000, {"ours": 500_000, "more": 500_001, "fewer": 500_000}),
    ]
    sizes = {"ours": 300, "more": 265, "fewer": 100_000}
    lines = table(measured, sizes).split("\n")
    assert lines == [
        "Bytes of UTF-8 per token: higher is better.",
        "saved: how many percent fewer tokens ours makes than the tokenizer left of it; below 0 it makes more.",
        "",
        "                bytes   ours   more   saved    fewer   saved",
        "vocabulary               300    265          100,000",
        "新闻            1,000  5.000  2.500  +50.0%    6.250  -25.0%",
        "b           2,000,000  4.000  4.000    0.0%    4.000    0.0%",
    ]
    coloured = table(measured, sizes, colour=True)
    assert plain(coloured).split("\n") == lines
    assert "\x1b[32m+50.0%" in coloured
    assert "\x1b[31m-25.0%" in coloured
    assert coloured.count("\x1b[0m") == 2
    assert "saved" not in table([Measured("a", 5, {"ours": 2})], {"ours": 300})


def test_the_samples_are_a_page_each_and_of_their_kind():
    texts = tools.samples()
    assert list(texts) == ["news", "code", "korean", "chinese", "maths", "science"]
    for name, documents in texts.items():
        (text,) = documents
        assert 1000 <= len(text.encode()) <= 2000, name
    assert len(re.findall(r"[가-힣]", texts["korean"][0])) > 300
    assert len(re.findall(r"[一-鿿]", texts["chinese"][0])) > 300
    assert texts["maths"][0].count("\\") > 50


def test_the_python_of_the_code_sample_runs():
    """It is real code, as it should be."""
    import ast

    python = tools.samples()["code"][0].split("/* A ring")[0]
    assert len(ast.parse(python).body) == 5


# ---- rank files ----------------------------------------------------------------------------------------------------


def test_rank_files_are_found_in_the_named_folders_first_then_in_tiktokens_cache(tmp_path, monkeypatch):
    gpt2, gpt4 = tools.KNOWN
    cache, named = tmp_path / "cache", tmp_path / "named"
    cache.mkdir()
    named.mkdir()
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    assert tools.find_ranks(gpt2, [named]) is None
    (cache / gpt2.cached).touch()
    (cache / gpt4.cached).touch()
    assert tools.find_ranks(gpt2, [named]) == cache / gpt2.cached
    (named / "r50k_base.tiktoken").touch()
    assert tools.find_ranks(gpt2, [named]) == named / "r50k_base.tiktoken"
    assert tools.find_ranks(gpt4, [named]) == cache / gpt4.cached
    (named / "gpt2.tiktoken").touch()
    assert tools.find_ranks(gpt2, [named]) == named / "gpt2.tiktoken"


def test_the_cache_is_where_tiktoken_has_it(tmp_path):
    both = {"TIKTOKEN_CACHE_DIR": "/a", "DATA_GYM_CACHE_DIR": "/b"}
    assert tools.tiktoken_cache(both).as_posix() == "/a"
    assert tools.tiktoken_cache({"DATA_GYM_CACHE_DIR": "/b"}).as_posix() == "/b"
    assert tools.tiktoken_cache({"TIKTOKEN_CACHE_DIR": ""}) is None
    assert tools.tiktoken_cache({}).name == "data-gym-cache"


def test_the_names_in_the_cache_are_those_that_tiktoken_gives():
    """The sha1 of each rank file's address, as `tiktoken.load.read_file_cached` makes it."""
    import hashlib
    import inspect

    public = pytest.importorskip("tiktoken_ext.openai_public")
    for known in tools.KNOWN:
        source = inspect.getsource(getattr(public, known.encoding))
        (address,) = re.findall(r'"(https://[^"]*\.tiktoken)"', source)
        assert hashlib.sha1(address.encode()).hexdigest() == known.cached
