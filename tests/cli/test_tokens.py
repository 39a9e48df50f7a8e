import re

import pytest

from nutshell.cli import compression as tools
from nutshell.cli.compression import measure, table
from nutshell.cli.tokens import show, show_ids, spell
from nutshell.tokenizer import Tokenizer


def plain(shown: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", shown)


# ---- show ----------------------------------------------------------------------------------------------------------


def test_show_colours_each_token_and_keeps_the_text(tok):
    text = "the cat\n  sat"
    shown = show(tok, tok.encode(text))
    assert plain(shown).replace("⏎", "") == text
    assert shown.count("\x1b[30;48;5;") == len(tok.encode(text))
    assert show(tok, []) == ""


def test_show_spells_what_would_steer_the_terminal(tok):
    shown = plain(show(tok, tok.encode("\x1b[2J\r🜁")))
    assert shown == r"\x1b[2J\x0d\xf0\x9f\x9c\x81"


def test_without_colours_separators_stand_between_tokens(tok):
    text = "the cat\n\n  sat on the mat"
    shown = show(tok, tok.encode(text), colour=False)
    assert "\x1b" not in shown
    assert shown.replace("⏎", "").replace("│", "") == text
    # A line that follows a token's own line end needs no separator.
    cuts = [tok.token_bytes(id).decode() for id in tok.encode(text)]
    assert shown.count("│") == sum(not token.endswith("\n") for token in cuts[:-1])


def test_special_tokens_are_shown_by_name_only_where_asked_for(tok):
    text = "<|bos|>the cat"
    assert plain(show(tok, tok.encode(text))).startswith("<|bos|>")
    assert "60m<|bos|>" not in show(tok, tok.encode(text))
    shown = show(tok, tok.encode(text, special=["<|bos|>"]))
    assert shown.startswith("\x1b[1;97;48;5;60m<|bos|>\x1b[0m")
    assert plain(shown) == text


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("width", [1, 20, 200])
def test_ids_stand_below_their_tokens(tok, colour, width):
    text = "<|bos|>the cat\n  sat, naïve 漢字"
    ids = tok.encode(text, special=["<|bos|>"])
    lines = plain(show_ids(tok, ids, colour=colour, width=width)).split("\n")
    assert [int(id) for line in lines[1::2] for id in line.split()] == ids
    spelled = "".join(lines[0::2]).replace(" ", "").replace("·", "")
    assert spelled == "".join(spell(tok, id) for id in ids).replace(" ", "").replace("\n", "⏎")
    assert width == 1 or max(map(len, lines)) <= width
    assert len(lines) % 2 == 0


def test_ids_begin_where_their_token_begins_even_below_wide_characters(tok):
    from rich.cells import cell_len

    first, second = show_ids(tok, tok.encode("漢字 the cat"), colour=False, width=200).split("\n")
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
    larger, smaller = tok, Tokenizer([])
    measured = measure({"ours": larger, "bytes": smaller}, texts)
    assert list(measured) == list(texts)
    for name, text in measured.items():
        assert text["bytes"] == sum(len(document.encode()) for document in texts[name])
        assert text["tokens"] == {"ours": sum(len(tok.encode(document)) for document in texts[name]), "bytes": text["bytes"]}
    english = measured["english"]
    assert english["bytes_per_token"] == {"ours": english["bytes"] / english["tokens"]["ours"], "bytes": 1.0}
    assert english["saved_percent"] == {"bytes": pytest.approx(100 - 100 * english["tokens"]["ours"] / english["bytes"])}
    assert measured["empty"]["bytes_per_token"] == {"ours": 0.0, "bytes": 0.0}
    assert measured["empty"]["saved_percent"] == {"bytes": 0.0}
    worse = measure({"bytes": smaller, "ours": larger}, texts)["english"]["saved_percent"]["ours"]
    assert worse == pytest.approx(100 - 100 * english["bytes"] / english["tokens"]["ours"])


def test_the_table_is_aligned_and_coloured_by_who_is_better():
    measured = {
        "新闻": {
            "bytes": 1000,
            "bytes_per_token": {"ours": 5, "more": 2.5, "fewer": 6.25},
            "saved_percent": {"more": 50, "fewer": -25},
        },
        "b": {
            "bytes": 2_000_000,
            "bytes_per_token": {"ours": 4, "more": 3.999992, "fewer": 4},
            "saved_percent": {"more": 0.0002, "fewer": 0.0},
        },
    }
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
    alone = {"a": {"bytes": 5, "bytes_per_token": {"ours": 2.5}, "saved_percent": {}}}
    assert "saved" not in table(alone, {"ours": 300})


def test_the_samples_are_a_page_each_and_of_their_kind():
    texts = tools.samples()
    assert list(texts) == ["news", "code", "korean", "chinese", "maths", "science"]
    for name, documents in texts.items():
        (text,) = documents
        assert 1000 <= len(text.encode()) <= 2000, name
    assert len(re.findall(r"[가-힣]", texts["korean"][0])) > 300
    assert len(re.findall(r"[一-鿿]", texts["chinese"][0])) > 300
    assert texts["maths"][0].count("\\") > 50


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


def test_the_cache_is_where_tiktoken_has_it(tmp_path, monkeypatch):
    gpt2, _ = tools.KNOWN
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("a", "b", "data-gym-cache"):
        (tmp_path / name).mkdir()
        (tmp_path / name / gpt2.cached).touch()
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    assert tools.find_ranks(gpt2, []) == tmp_path / "data-gym-cache" / gpt2.cached
    monkeypatch.setenv("DATA_GYM_CACHE_DIR", str(tmp_path / "b"))
    assert tools.find_ranks(gpt2, []) == tmp_path / "b" / gpt2.cached
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "a"))
    assert tools.find_ranks(gpt2, []) == tmp_path / "a" / gpt2.cached
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    assert tools.find_ranks(gpt2, []) is None


def test_the_names_in_the_cache_are_those_that_tiktoken_gives():
    """The sha1 of each rank file's address, as `tiktoken.load.read_file_cached` makes it."""
    import hashlib
    import inspect

    public = pytest.importorskip("tiktoken_ext.openai_public")
    for known, encoding in zip(tools.KNOWN, ("r50k_base", "cl100k_base"), strict=True):
        source = inspect.getsource(getattr(public, encoding))
        (address,) = re.findall(r'"(https://[^"]*\.tiktoken)"', source)
        assert hashlib.sha1(address.encode()).hexdigest() == known.cached
