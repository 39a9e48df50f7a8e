"""The verb `feedback`: what users said of answers, as training data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nutshell.cli.arguments import existing, parse_arguments


def feedback(arguments: list[str]) -> Any:
    """Make training data of what users said of answers."""
    options = parse_arguments(
        "feedback", arguments, feedback.__doc__, _action={"choices": ["export"], "help": "write sft.jsonl and pairs.jsonl"},
        _database={"type": os.path.expanduser, "help": "the file that `nutshell serve --feedback` keeps"},
        out={"type": os.path.expanduser, "required": True, "metavar": "FOLDER", "help": "where they are written"},
    )  # fmt: skip
    from nutshell.serve.feedback import FeedbackStore, export

    counts = export(FeedbackStore(existing(options.database)), Path(options.out))
    print(f"{options.out}: {counts['sft']} conversations in sft.jsonl, {counts['pairs']} pairs in pairs.jsonl")
    return counts
