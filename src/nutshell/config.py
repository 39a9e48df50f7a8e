"""TOML recipe -> frozen dataclasses -> flags. A recipe cannot name a field that does not exist."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import shutil
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
ABOVE_ZERO = 5e-324  # as the lowest of a range: any number above 0
NARROWEST_HELP = 40  # columns
MOST = 2**63  # below which all settings with a range stay


def _plain(hint: Any) -> Any:
    """The type inside Optional[...]."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(a for a in typing.get_args(hint) if a is not type(None))
    return hint


def _default(cls: Any, base: Any, name: str) -> Any:
    """What field `name` is where nothing is given: that of `base`, else the field's own default; None where it has none."""
    if base is not None:
        return getattr(base, name)
    field = next(f for f in dataclasses.fields(cls) if f.name == name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _check_type(value: Any, expected: Any, place: str) -> None:
    """ValueError for a value of another plain type; choices are strings."""
    if typing.get_origin(expected) is typing.Literal:
        expected = str
    kinds = {float: (int, float), int: (int,), str: (str,), bool: (bool,)}.get(expected)
    if kinds and (not isinstance(value, kinds) or (expected is not bool and isinstance(value, bool))):
        raise ValueError(f"{place} is {value!r}; accepted: {expected.__name__}.")


def from_dict(cls: type[T], values: dict, where: str, prefix: str = "", base: T | None = None) -> T:
    """Build dataclass `cls` from nested dictionaries; what they leave out stays as in `base` or as the default has it.

    ValueError names a key that is unknown or missing, or a wrong value.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where}: {prefix.rstrip('.') or 'the whole'} is {values!r}; accepted: a table of keys and values.")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in names:
            close = difflib.get_close_matches(key, names, n=1)
            hint = f" Did you mean {prefix}{close[0]}?" if close else ""
            raise ValueError(f"{where}: unknown key {prefix}{key}.{hint} Accepted: {', '.join(names)}.")
        expected = _plain(hints[key])
        if dataclasses.is_dataclass(expected):
            arguments[key] = from_dict(expected, value, where, f"{prefix}{key}.", _default(cls, base, key))  # type: ignore[arg-type]
            continue
        if typing.get_origin(expected) is dict and isinstance(value, dict):
            key_type, value_type = typing.get_args(expected)
            if dataclasses.is_dataclass(value_type):
                value = {k: from_dict(value_type, v, where, f"{prefix}{key}.{k}.") for k, v in value.items()}  # type: ignore[arg-type]
            value = {key_type(k): v for k, v in value.items()}
        if typing.get_origin(expected) is tuple:
            if not isinstance(value, (list, tuple)):
                raise ValueError(f"{where}: {prefix}{key} is {value!r}; accepted: a list.")
            item, places = typing.get_args(expected)[0], [f"{prefix}{key}.{n}" for n in range(len(value))]
            if dataclasses.is_dataclass(item):
                value = [from_dict(item, v, where, f"{place}.") for place, v in zip(places, value, strict=True)]  # type: ignore[arg-type]
            for place, v in zip(places, value, strict=True):
                _check_type(v, item, f"{where}: {place}")
            value = tuple(value)
        if value is not None:
            _check_type(value, expected, f"{where}: {prefix}{key}")
        arguments[key] = value
    none = (dataclasses.MISSING, dataclasses.MISSING)
    needed = {f.name for f in dataclasses.fields(cls) if (f.default, f.default_factory) == none}  # type: ignore[arg-type]
    if base is None and (missing := sorted(needed - set(arguments))):
        raise ValueError(f"{where}: {', '.join(prefix + name for name in missing)} missing.")
    try:
        return cls(**arguments) if base is None else dataclasses.replace(base, **arguments)  # type: ignore[type-var]
    except ValueError as error:
        raise ValueError(f"{where}: {f'[{prefix[:-1]}] ' if prefix else ''}{error}") from None


def check_ranges(settings: Any, ranges: Mapping[str, tuple[float, float]], *, or_zero: bool = False) -> None:
    """ValueError for a setting outside its (lowest, highest); with `or_zero` 0 is accepted too, since the plan decides then.

    NaN and infinity are never accepted, nor integers beyond 64 bits, which torch and numpy can't hold.
    """
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if not (low <= value <= high and abs(value) < MOST) and not (or_zero and value == 0):
            least = "above 0" if low == ABOVE_ZERO else f"at least {low}"
            least += ", below 2^63" if value >= MOST else ""
            accepted = least if math.isinf(high) else f"{'above 0' if low == ABOVE_ZERO else low} to {high}"
            raise ValueError(f"{name} is {value}; accepted: {'0 (the plan decides), or ' * or_zero}{accepted}.")


def differences(one: Any, other: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(name, value, other value) of every setting that differs; stages.sft.steps is the name of a nested one."""
    for f in dataclasses.fields(one):
        a, b = getattr(one, f.name), getattr(other, f.name)
        if dataclasses.is_dataclass(a):
            yield from differences(a, b, f"{prefix}{f.name}.")
        elif a != b:
            yield prefix + f.name, a, b


def load_toml(cls: type[T], path: str | Path, *, tidy: Callable[[dict], dict] = dict) -> T:
    """Read a recipe: a .toml file or a folder that holds config.toml. `tidy` sees the tables first: old names become new."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    path = Path(path)
    file = path / "config.toml" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"recipe {path} not found: expected a .toml file or a folder with config.toml.")
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid TOML: {error}") from None
    return from_dict(cls, tidy(values), str(file))


def parse(cls: type[T], arguments: list[str], *, prog: str, description: str | None, default: T | None = None) -> T:
    """Flags for every field of `cls`, the docstring under each field its help. Bad flags exit with code 2."""
    import tyro

    # tyro lays its help out without end in 5 columns, and in 9,000 lines in 10
    os.environ["COLUMNS"] = str(max(NARROWEST_HELP, shutil.get_terminal_size().columns))
    kwargs: Any = {} if default is None else {"default": default}
    return tyro.cli(cls, args=arguments, prog=prog, description=description, **kwargs)
