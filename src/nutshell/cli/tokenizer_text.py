"""`nutshell tokenizer encode`, `decode` and `show`."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from typing import TYPE_CHECKING, Any

from nutshell.cli.tokenizer_common import FOLDER, PATTERN, in_colour, open_tokenizer, parser_of, read

if TYPE_CHECKING:
    from nutshell.tokenizer import Tokenizer


def _text_parser(action: str, usage: str, epilog: str = "") -> argparse.ArgumentParser:
    epilog += "A text that begins with - goes after --, as in: -- -5"
    parser = parser_of(action, f"FOLDER (TEXT | - | --file PATH) [--special NAME]{usage}", epilog)
    parser.add_argument("folder", metavar="FOLDER", help=FOLDER)
    parser.add_argument("text", metavar="TEXT", nargs="?", help="the text; - reads standard input")
    parser.add_argument("--file", metavar="PATH", help="read the text from this file")
    parser.add_argument(
        "--special",
        metavar="NAME",
        action="append",
        default=[],
        help="read this special token from the text, such as '<|bos|>'; all reads every one. May be repeated. Text that spells "
        "another one stays plain text.",
    )
    parser.add_argument("--pattern", metavar="P", help=PATTERN)
    return parser


def encode(arguments: list[str]) -> Any:
    """`nutshell tokenizer encode`: {"ids": [...]}."""
    options = _text_parser("encode", " [--pattern P]").parse_intermixed_args(arguments)
    text = read(options.text, options.file, "TEXT")
    tok = open_tokenizer(options.folder, options.pattern)
    ids = tok.encode(text, special=_special(tok, options.special))
    print(" ".join(map(str, ids)))
    return {"ids": ids}


def show(arguments: list[str]) -> Any:
    """`nutshell tokenizer show`: the ids, how each token is spelled, and the bytes of the text."""
    epilog = "Colours are left out where the output is no terminal or NO_COLOR is set; │ then stands between tokens.\n"
    parser = _text_parser("show", " [--ids] [--color WHEN] [--pattern P]", epilog)
    parser.add_argument("--ids", action="store_true", help="print each token's id below it")
    parser.add_argument("--color", "--colour", choices=("auto", "always", "never"), default="auto", help="default: auto")
    options = parser.parse_intermixed_args(arguments)
    text = read(options.text, options.file, "TEXT")
    tok = open_tokenizer(options.folder, options.pattern)
    from nutshell.cli import tokens as tools

    special = _special(tok, options.special)
    ids, size = tok.encode(text, special=special), len(text.encode())
    colour = in_colour(options.color)
    if options.ids:
        width = shutil.get_terminal_size().columns
        print(tools.show_ids(tok, text, special=special, colour=colour, width=width))
    else:
        print(tools.show(tok, text, special=special, colour=colour))
    print(f"\n{_plural(len(ids), 'token')}, {_plural(size, 'byte')}, {size / max(len(ids), 1):.2f} bytes per token")
    return {"ids": ids, "tokens": [tools.spell(tok, id) for id in ids], "bytes": size}


def decode(arguments: list[str]) -> Any:
    """`nutshell tokenizer decode`: {"text": ...}; bytes that are not UTF-8 become U+FFFD."""
    parser = parser_of("decode", "FOLDER (ID ... | - | --file PATH) [--spell-special] [--pattern P]")
    parser.add_argument("folder", metavar="FOLDER", help=FOLDER)
    parser.add_argument("ids", metavar="ID", nargs="*", help="token ids; - reads them from standard input")
    parser.add_argument("--file", metavar="PATH", help="read the ids from this file: numbers, or what encode --json printed")
    parser.add_argument("--spell-special", action="store_true", help="print the names of special tokens; else they give no text")
    parser.add_argument("--pattern", metavar="P", help=PATTERN)
    options = parser.parse_intermixed_args(arguments)
    ids = _ids(read(" ".join(options.ids) if options.ids else None, options.file, "ID"))
    tok = open_tokenizer(options.folder, options.pattern)
    print(text := tok.decode(ids, special=options.spell_special))
    return {"text": text}


def _ids(text: str) -> list[int]:
    """Ids from numbers between blanks or commas, a JSON list, or the object that `encode --json` prints."""
    if text.lstrip().startswith("{"):
        try:
            text = " ".join(map(str, json.loads(text)["ids"]))
        except (ValueError, KeyError, TypeError):
            raise ValueError('expected token ids, or the JSON object with "ids" that encode --json prints') from None
    words = re.sub(r"[\[\],]", " ", text).split()
    wrong = next((word for word in words if not re.fullmatch(r"-?[0-9]{1,20}", word)), None)
    if wrong is not None:
        raise ValueError(f"{wrong!r} is not a token id; give whole numbers")
    return [int(word) for word in words]


def _special(tok: Tokenizer, names: list[str]) -> list[str]:
    return list(tok.special_tokens) if "all" in names else names


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
