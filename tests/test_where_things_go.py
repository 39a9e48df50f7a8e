"""What CONTRIBUTING.md, docs/reading.md and docs/design.md say of files and names is so."""

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("CONTRIBUTING.md", "docs/reading.md", "docs/design.md")
ROOMS = ("serve", "serve/web", "train", "cli", "plan", "infer", "model", "tokenizer")
PLACES = ("", "docs/", "recipes/demo/", "src/nutshell/", *(f"src/nutshell/{room}/" for room in ROOMS))
MADE_BY_RUNS = re.compile(
    r"(config|manifest|state|plan|tokenizer|tokenizer_config|best|report|scaling|special_tokens_map)\.json|metrics\.jsonl"
    r"|(model|state)\.safetensors|report\.md|(gpt2|cl100k_base)\.tiktoken|qwen2\.json|my_task\.py.*|rewards\.py.*|step-.*"
)


@cache
def source() -> str:
    files = [*ROOT.glob("src/nutshell/**/*.py"), *ROOT.glob("src/nutshell/serve/web/*.js"), *ROOT.glob("rust/src/**/*.rs")]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_are_there(page):
    quoted = re.findall(r"`([^`\n]+)`", (ROOT / page).read_text(encoding="utf-8"))
    files = {text for text in quoted if re.fullmatch(r"[\w/.-]+\.(py|rs|md|js|html|toml|sh|json)", text)}
    missing = [
        name for name in files
        if not any((ROOT / place / name).exists() for place in PLACES)
        and not MADE_BY_RUNS.fullmatch(name.rsplit("/", 1)[-1]) and "NAME" not in name
    ]  # fmt: skip
    assert not missing
    folders = {text for text in quoted if re.fullmatch(r"[\w/-]+/", text)}
    assert not [name for name in folders if not any((ROOT / place / name).exists() for place in (*PLACES, "src/"))]


def test_names_in_the_table_of_new_things_exist():
    table = [line for line in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    for line in table:
        for name in re.findall(r"`([A-Za-z_][\w.]*)`", line):
            if not re.search(r"\.(py|md|rs|js|html|toml|sh)$", name):
                last = name.rsplit(".", 1)[-1]
                assert re.search(rf"\b{last}\b", source()), (name, line)


def test_the_table_of_rooms_is_the_one_that_imports_are_checked_by():
    """docs/design.md and test_imports.py: every room stands in both, and where a row is of one room, with the same arrows."""
    from test_imports import ALLOWED

    rows = re.findall(
        r"^\| (`.+`) \| .* \| (.*) \|$", (ROOT / "docs/design.md").read_text(encoding="utf-8").split("## Decisions")[0], re.M
    )
    rooms = {room: row[1] for row in rows for room in re.findall(r"`(\w+)`", row[0])}
    assert set(ALLOWED) | {"cli"} == set(rooms)
    for names, arrows in rows:
        if re.fullmatch(r"`\w+`", names) and re.fullmatch(r"(`\w+` ?)+", arrows):
            assert set(re.findall(r"`(\w+)`", arrows)) == ALLOWED[names.strip("`")], names


def test_the_core_is_ten_files_and_short():
    """docs/reading.md: ten files in an order, with the siblings that are named at most 2,500 lines."""
    page = (ROOT / "docs/reading.md").read_text(encoding="utf-8").split("## One step")[0]
    core = re.findall(r"^\d+\. \*\*`(src/[\w/]+\.py)`\*\*", page, re.MULTILINE)
    assert len(core) == 10
    named = [name for name in re.findall(r"`([\w/]+\.py)`", page) if name not in core]
    beside = {place / name for name in named for place in ((ROOT / file).parent for file in core) if (place / name).exists()}
    beside |= {ROOT / "src/nutshell" / name for name in named if (ROOT / "src/nutshell" / name).exists()}
    assert sum(len(file.read_text(encoding="utf-8").splitlines()) for file in {*beside, *(ROOT / f for f in core)}) <= 2500
