"""The verb `report`: a run's report, or a page that compares several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nutshell.cli.arguments import parse_arguments


def report(arguments: list[str]) -> Any:
    """Write the report of a run, or one page that compares several."""
    options = parse_arguments(
        "report", arguments, report.__doc__,
        _run={"nargs": "+", "type": Path, "metavar": "RUN", "help": "run folder, finished or not; several are compared"},
        usd_per_hour={"type": float, "default": 0.0, "help": "price of the machine, for the cost table"},
        out={"type": Path, "default": None, "metavar": "FILE.html", "help": "the page of a comparison; else compare.html"},
    )  # fmt: skip
    folders = [path.expanduser() for path in options.run]
    price = options.usd_per_hour or None
    if len(folders) > 1:
        from nutshell.report.compare import compare

        compared = compare(folders, (options.out or Path("compare.html")).expanduser(), price)
        print(compared["page"])
        return compared
    if options.out is not None:
        raise ValueError(
            "--out names the page that compares runs. Accepted: two or more runs; one run's report lies in its folder."
        )

    from nutshell.report.facts import build_report

    built = build_report(folders[0], usd_per_hour=price)
    print(f"{folders[0]}/report.md")
    return built
