"""Anybody's files as shards: every kind is read, what is left out is counted, and nothing half is written."""

import bz2
import gzip
import json
import os

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nutshell.data import importing, shuffle
from nutshell.data.html import html_text
from nutshell.data.near_duplicates import NearDuplicates, sequences
from nutshell.data.shards import open_shards
from nutshell.files import sole_writer


def pdf(text: str) -> bytes:
    """The least that is a PDF."""
    drawn = f"BT /F1 12 Tf 20 20 Td ({text}) Tj ET"
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        "<</Type/Pages/Kids[3 0 R]/Count 1>>",
        "<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 300]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        f"<</Length {len(drawn)}>>stream\n{drawn}\nendstream",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    content, places = "%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(content))
        content += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    end = f"xref\n0 6\n0000000000 65535 f \n{table}trailer\n<</Size 6/Root 1 0 R>>\nstartxref\n{len(content)}\n%%EOF\n"
    return (content + end).encode()


def texts(folder) -> set[str]:
    shards = open_shards(folder)
    return {text for split in ("train", "val") for block in range(shards.blocks(split)) for text in shards.read(split, block)}


@pytest.fixture
def notes(tmp_path):
    """A folder with a document of every kind, and what each says."""
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    files = {
        "a.txt": b"plain",
        "b.md": b"# Marked",
        "deep/code.py": b"def f():\n    return 1\n",
        "page.html": b"<head><title>t</title></head><p>One <b>two</b>.<p>Three<script>no()</script>",
        "table.csv": b'id,text\n1,"in a, cell"\n2,"two\nlines"\n',
        "tabs.tsv": b"text\tid\nparted by tabs\t1\n",
        "rows.jsonl": b'{"text": "a row"}\n{"text": "another row"}\n',
        "list.json": b'[{"content": "in a list"}]',
        "packed.txt.gz": gzip.compress(b"packed with gzip"),
        "packed.jsonl.bz2": bz2.compress(b'{"text": "packed with bzip2"}'),
        "wide.txt": "weit: äöü".encode("utf-16"),
        "marked.txt": b"\xef\xbb\xbfwith a mark",
        "latin.html": "<meta charset='latin-1'><p>caf\xe9".encode("latin-1"),
        "mistaken.html": "<meta charset=utf-16><p>thé".encode(),
        "nonsense.html": b"<meta charset=base64><p>eau",
        "picture.png": b"\x89PNG",
        ".hidden.txt": b"hidden",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array(["in parquet"]).dictionary_encode()}), folder / "p.parquet")
    (folder / "loop").symlink_to(folder)
    (folder / "deep" / "again.txt").symlink_to(folder / "a.txt")
    return folder


def test_every_kind_is_read_once(notes, run_command, tmp_path):
    code, out, err = run_command("data import notes --out shards --val-fraction 0.1")
    assert code == 0, err
    found = texts(tmp_path / "shards")
    said = {
        "plain", "# Marked", "def f():\n    return 1", "One two.\n\nThree", "in a, cell", "two\nlines", "parted by tabs", "a row",
        "another row", "in a list", "packed with gzip", "packed with bzip2", "weit: äöü", "with a mark", "café", "in parquet",
        "thé", "eau",
    }  # fmt: skip
    assert {text.removesuffix(" ...") for text in found} == said
    assert "1 .png" in out and "column content" in out  # noqa: PT018
    assert "took" in out.splitlines()[0]


def test_a_pdf(run_command, tmp_path):
    pytest.importorskip("pypdf", reason="pypdf is not installed")
    (tmp_path / "paper.pdf").write_bytes(pdf("Said in a PDF"))
    (tmp_path / "more.txt").write_text("Said in a note")
    code, _, err = run_command("data import paper.pdf more.txt --out shards")
    assert code == 0, err
    assert texts(tmp_path / "shards") == {"Said in a PDF", "Said in a note"}
    (tmp_path / "paper.pdf").write_bytes(pdf("")[:60])
    code, _, err = run_command("data import paper.pdf --out other")
    assert code == 2
    assert "paper.pdf cannot be read as PDF" in err


def test_a_pdf_without_pypdf_says_how_to_install_it(run_command, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pypdf", None)
    (tmp_path / "paper.pdf").write_bytes(pdf("Said in a PDF"))
    code, _, err = run_command("data import paper.pdf --out shards")
    assert (code, os.path.exists(tmp_path / "shards")) == (2, False)
    assert "pip install 'nutshell-lm[pdf]'" in err


@pytest.mark.parametrize("content", [b"first line\nsecond line\n", b'{"text": "first line"}\n{"text": "second line"}\n'])
def test_standard_input(run_command, tmp_path, content):
    code, _, err = run_command("data import - --lines --out shards", stdin=content)
    assert code == 0, err
    assert texts(tmp_path / "shards") == {"first line", "second line"}


def test_filters_count_what_they_leave_out(run_command, tmp_path):
    rows = ["no", "right length", "right length", "also right", "much too long" * 9]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"said": row}) + "\n" for row in rows))
    code, out, err = run_command("data import rows.jsonl --column said --min-chars 3 --max-chars 50 --out shards --json")
    assert code == 0, err
    assert texts(tmp_path / "shards") == {"right length", "also right"}
    assert json.loads(out)["left_out"] == {"too short": 1, "too long": 1, "equal documents": 1}


def test_texts_in_other_languages_are_left_out(run_command, tmp_path):
    pytest.importorskip("py3langid", reason="py3langid is not installed")
    said = {
        "en": "The sky is blue because air scatters the short waves of light more than the long ones.",
        "de": "Der Himmel ist blau, weil die Luft die kurzen Wellen des Lichts mehr streut als die langen.",
        "fr": "Le ciel est bleu parce que l'air diffuse les ondes courtes de la lumière plus que les longues.",
        "zh": "天空是蓝色的，因为空气对短波光的散射比对长波光的散射更强。",
    }
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in said.values()))
    code, out, err = run_command("data import rows.jsonl --language en zh --out shards --json")
    assert code == 0, err
    assert texts(tmp_path / "shards") == {said["en"], said["zh"]}
    assert json.loads(out)["left_out"] == {"in language de": 1, "in language fr": 1}
    code, _, err = run_command("data import rows.jsonl --language english --out other")
    assert code == 2
    assert "--language english is unknown; accepted: " in err


def test_languages_without_py3langid_say_how_to_install_it(run_command, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "py3langid", None)
    (tmp_path / "a.txt").write_text("text")
    code, _, err = run_command("data import a.txt --language en --out shards")
    assert (code, os.path.exists(tmp_path / "shards")) == (2, False)
    assert "pip install 'nutshell-lm[language]'" in err


def test_folders_named_for_validation_are_held_out(run_command, tmp_path):
    for split in ("train", "validation"):
        (tmp_path / "text" / split).mkdir(parents=True)
        (tmp_path / "text" / split / "a.html").write_text(f"<p>for {split}")
    assert run_command("data import text --out shards")[0] == 0
    shards = open_shards(tmp_path / "shards")
    assert (shards.read("train", 0), shards.read("val", 0)) == (["for train"], ["for validation"])


@pytest.mark.parametrize(
    ("files", "line", "says"),
    [
        ({"a.jsonl": b'{"text": "x"}\nbroken'}, "a.jsonl", "a.jsonl, line 2: not JSON"),
        ({"a.txt": b"caf\xe9"}, "a.txt", "is not UTF-8 text"),
        ({"a.txt": b"ab\x00"}, "a.txt --encoding utf-16", "a.txt is not utf-16 text"),
        ({"a.csv": b"x,y\n1,2\n"}, "a.csv", "no column 'text'; found x, y"),
        ({"a.csv": b"x,y\n1,2\n"}, "a.csv --column z", "no column 'z'; found x, y"),
        ({"a.html": b"<p> "}, "a.html", "no document is left of these files: 1 empty"),
        ({"a.txt": b"short"}, "a.txt --min-chars 9", "no document is left of these files: 1 too short"),
        ({"a.csv": b"text\n1,2\n"}, "a.csv", "a.csv, line 2: 2 cells where the head has 1 columns. Mend it, or leave out"),
        ({"a.csv": b"text\n1,2\n"}, "a.csv --skip-bad", "1 N cells where the head has N columns; a.csv, line 2: 2 cells"),
        ({"a.csv": b'text,n\na,1\n"b,2\nc,3\n'}, "a.csv", "a.csv, line 3: a quotation mark is not closed until line 4. Mend it"),
        ({"a.jsonl": b'{"text": 1}'}, "a.jsonl", "a.jsonl, line 1: column 'text' holds a number, not a string. Mend it"),
        ({"a.parquet": b"PAR1"}, "a.parquet", "a.parquet cannot be read as Parquet"),
        ({"a.txt.gz": b"\x1f\x8b"}, "a.txt.gz", "a.txt.gz cannot be unpacked"),
        ({"a.exe": b"MZ"}, "a.exe", "has suffix '.exe'; accepted are .txt"),
        ({}, "nowhere", "nowhere does not exist"),
        ({"a.txt": b"x"}, "a.txt --encoding klingon", "--encoding klingon is unknown"),
        ({"a.txt": b"x"}, "a.txt --encoding base64", "--encoding base64 is unknown"),
        ({"shards": b"x", "a.txt": b"text"}, "a.txt", "shards is not an empty folder"),
        ({"a.txt": b"x"}, "a.txt --min-chars 9 --max-chars 2", "--max-chars 2; accepted"),
        ({"a.txt": b"x"}, "a.txt --near-duplicates 8", "accepted: 0.5 to 1"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(run_command, tmp_path, files, line, says):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    code, _, err = run_command(f"data import {line} --out shards")
    assert code == 2
    assert says in err
    assert sorted(os.listdir(tmp_path)) == sorted(files)


def test_skip_bad_counts_what_is_bad_and_names_the_first(run_command, tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    files = {
        "a.txt": "good one, and long enough to be cut in two",
        "b.jsonl": '{"text": "before"}\nbroken\n{"text": 1}\n[2]\n{"text": "after"}\n{"said": "x"}\nbroken too\n',
        "c.csv": "id,text\n1,row\n2\n3,more,cells\n4,another row\n",
        "d.html": b"caf\xe9",
        "e.parquet": b"PAR1",
        "f.jsonl.gz": gzip.compress(b'{"text": "whole"}\n' * 9)[:-9],
    }
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    code, out, err = run_command("data import text --skip-bad --out shards --json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["bad"] == {
        "not JSON": 2, "column 'text' holds a number, not a string": 1,
        "a list where an object with the column 'text' is expected": 1, "no column 'text'": 1,
        "N cells where the head has N columns": 2, "unreadable .html files": 1,
        "unreadable .parquet files": 1, "unreadable .jsonl files": 1,
    }  # fmt: skip
    assert facts["first_bad"].startswith("text/b.jsonl, line 2: not JSON")
    assert {"before", "after", "row", "another row"} < texts(tmp_path / "shards")
    assert "10 " not in err.partition("bad  ")[2].splitlines()[0]
    assert "the first: text/b.jsonl, line 2: not JSON" in err


COLUMNS = {
    "string": pyarrow.string(), "large": pyarrow.large_string(), "view": pyarrow.string_view(), "binary": pyarrow.binary(),
    "dictionary": pyarrow.dictionary(pyarrow.int32(), pyarrow.string()), "large-binary": pyarrow.large_binary(),
}  # fmt: skip


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_of_parquet(run_command, tmp_path, kind):
    said = ["ein Wort über", "天空", None, "", "a row"]
    column = pyarrow.array(said).dictionary_encode() if kind == "dictionary" else pyarrow.array(said).cast(COLUMNS[kind])
    pyarrow.parquet.write_table(pyarrow.table({"id": range(5), "said": column}), tmp_path / "a.parquet")
    code, _, err = run_command("data import a.parquet --column said --out shards")
    assert code == 0, err
    assert texts(tmp_path / "shards") == {"ein Wort über", "天空", "a row"}


@pytest.mark.parametrize("pack", ["", ".gz", ".zst", ".bz2"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_tables_in_any_encoding_packed(run_command, tmp_path, pack, encoding):
    codec = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}.get(pack)
    with pyarrow.output_stream(str(tmp_path / f"a.csv{pack}"), compression=codec) as file:
        file.write('id;text\r\n1;"für; alle"\r\n2;"two\r\nlines"\r\n'.encode(encoding))
    code, _, err = run_command(f"data import a.csv{pack} --out shards" + " --encoding cp1252" * (encoding == "cp1252"))
    assert code == 0, err
    assert texts(tmp_path / "shards") == {"für; alle", "two\nlines"}


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_tables_of_a_folder_are_looked_at_in_their_encoding(run_command, tmp_path, encoding):
    (tmp_path / "in").mkdir()
    for name in "ab":
        (tmp_path / "in" / f"{name}.csv").write_bytes(f"text\nüber {name}\n".encode(encoding))
    code, _, err = run_command("data import in --out shards" + " --encoding cp1252" * (encoding == "cp1252"))
    assert code == 0, err
    assert texts(tmp_path / "shards") == {"über a", "über b"}


def test_a_folder_of_tables_without_text_is_told_by_their_columns(run_command, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("x,y\n1,2\n")
    code, _, err = run_command("data import in --out shards")
    assert code == 2
    assert "a.csv, line 2: no column 'text'; found x, y" in err


def test_out_may_be_a_link_and_stays_one(run_command, tmp_path):
    (tmp_path / "a.txt").write_text("some words to take in")
    (tmp_path / "disk").mkdir()
    for name, there in (("first", "disk"), ("second", "not-yet")):
        (tmp_path / name).symlink_to(there)
        code, _, err = run_command(f"data import a.txt --out {name}")
        assert code == 0, err
        assert (tmp_path / name).is_symlink()
        assert texts(tmp_path / there)
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "disk", "first", "not-yet", "second"]


@pytest.mark.parametrize(("path", "out"), [("", "shards"), ("a.txt", ""), ("a.txt", "/"), ("a.txt", ".")])
def test_places_that_are_no_folder_of_ones_own(run_command, tmp_path, path, out):
    (tmp_path / "a.txt").write_text("some words to take in")
    code, _, err = run_command(["data", "import", path, "--out", out])
    assert code == 2
    assert ("a path is empty" if "" in (path, out) else f"{out} is not an empty folder") in err
    assert os.listdir(tmp_path) == ["a.txt"]


def test_an_import_goes_on_after_an_interruption(run_command, tmp_path, monkeypatch):
    (tmp_path / "notes").mkdir()
    for n in range(6):
        (tmp_path / "notes" / f"{n}.txt").write_text(f"note {n}\ndown to the end {n}\nand more\n")
        (tmp_path / "notes" / f"{n}.csv").write_text(f"text\ncell {n}\n" + "bad,row\n" * n)
    code, whole, err = run_command("data import notes --lines --skip-bad --out whole --json")
    assert code == 0, err
    monkeypatch.setattr(shuffle, "INPUT_BYTES", 0)
    real, reads = importing.read_any, []

    def interrupted(file, *arguments):
        reads.append(file.name)
        if len(reads) == 5:
            raise KeyboardInterrupt
        return real(file, *arguments)

    monkeypatch.setattr(importing, "read_any", interrupted)
    line = "data import notes --lines --skip-bad --out shards --json"
    assert run_command(line)[0] == 130
    code, out, err = run_command(line)
    assert code == 0, err
    assert len(reads) == 5 + 8
    assert json.loads(out) == json.loads(whole) | {"folder": "shards"}
    assert json.loads(out)["bad"] == {"N cells where the head has N columns": 15}
    assert texts(tmp_path / "shards") == texts(tmp_path / "whole")


def test_another_encoding(run_command, tmp_path):
    for name, text in (("a.txt", "café au lait"), ("b.txt", "thé à la menthe")):
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    assert run_command("data import a.txt b.txt --encoding latin-1 --out shards")[0] == 0
    assert texts(tmp_path / "shards") == {"café au lait", "thé à la menthe"}


def test_two_imports_into_one_folder(run_command, tmp_path):
    """Of the kind of F34: the second one deleted what the first had so far."""
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    with sole_writer(tmp_path / "shards"):
        (tmp_path / ".shards.partial").mkdir()
        code, _, err = run_command("data import a.jsonl --out shards")
        assert code == 2
        assert "another process is writing shards. Wait for it" in err
        assert (tmp_path / ".shards.partial").exists()
    assert run_command("data import a.jsonl --out shards")[0] == 0
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "shards"]


@pytest.mark.parametrize("room", [0, 10, 20_000, 100_000])
def test_a_full_disk_is_one_line_and_leaves_nothing(run_command, tmp_path, monkeypatch, room):
    """No room for a larger file, at the start and in each pass: the system's own error, whoever writes."""
    resource = pytest.importorskip("resource", reason="Windows has no limit for files")
    monkeypatch.setattr(shuffle, "PART_CHARACTERS", 40_000)
    rows = (np.random.default_rng(n).bytes(50).hex() for n in range(2500))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        code, _, err = run_command("data import rows.jsonl --out shards")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (code, err.count("\n")) == (2, 1)
    assert "shards: the disk is full; nothing was left behind" in err
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_html_text():
    page = (
        "<html><head><style>p{}</style></head><body><h1>Title</h1><ul><li>one<li>two</ul><td>a<td>b<pre>x\n  y</pre>&amp;&#233;"
    )
    assert html_text(page) == "Title\n\none\ntwo\n a b\n\nx\n  y\n\n&é"


# ---- near duplicates -----------------------------------------------------------------------------------------------


def test_a_near_duplicate_is_left_out_and_another_text_is_not(run_command, tmp_path):
    draw = np.random.default_rng(0)
    story = " ".join(f"word{n}" for n in draw.integers(0, 10**6, 400))
    edited = story.replace(story.split()[200], "changed")  # 5 of 396 sequences differ on each side
    other = " ".join(f"word{n}" for n in draw.integers(0, 10**6, 400))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in (story, edited, other)))
    code, out, err = run_command("data import rows.jsonl --near-duplicates 0.9 --out shards --json")
    assert code == 0, err
    assert json.loads(out)["left_out"] == {"near duplicates": 1}
    assert not any("changed" in text for text in texts(tmp_path / "shards"))


@given(st.integers(1, 300), st.integers(0, 300), st.integers(0, 2**32))
def test_minhash_measures_likeness(shared, different, seed):
    """Against the sets themselves: the standard error of 128 hashes is at most 0.045."""
    draw = np.random.default_rng(seed)
    words = [f"w{n}" for n in draw.permutation(10**5)[: shared + 2 * different + 20]]
    first = " ".join(words[: shared + different + 10])
    second = " ".join(words[: shared + 10] + words[shared + different + 10 :])
    sets = {*sequences(first)}, {*sequences(second)}
    true = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    seen = NearDuplicates(0.8)
    assert abs(np.mean(seen.signature(first) == seen.signature(second)) - true) < 0.25
