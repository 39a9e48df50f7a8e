"""Download named data into a folder. Only what is missing is fetched, and a file appears once its hash is verified.

A hidden record beside the files holds their commit and sizes, so that a later call knows what is there.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nutshell.data.rows import file_rows
from nutshell.data.sources import Source
from nutshell.files import FULL_DISK, FullDiskError, fsync, read_record, sha256, sole_writer, write_json
from nutshell.hub import RemoteFile, check_space, fetch, is_offline, remote_files

RECORD = ".source.json"
PARTIAL = ".partial"


def download(
    source: Source, folder: Path, *, shards: int | None = None, url: str = "", note: Callable[[str], object] = lambda line: None
) -> list[Path]:
    """Bring a source into `folder` and return its files; `note` gets one line about what was done.

    ValueError if the network, the hub or the disk do not allow it, or if `folder` holds other files. Files that have arrived
    stay, and the next call fetches the rest.
    """
    if url and not source.url:
        raise ValueError(f"--url is for sources that are no hub repository; {source.folder} is {source.repository}.")
    with sole_writer(folder):
        if source.url:
            return _download_url(source, folder, url or source.url, note)
        return _download_files(source, folder, shards, note)


def _download_files(source: Source, folder: Path, shards: int | None, note: Callable[[str], object]) -> list[Path]:
    """Fetch the missing files of a hub repository."""
    wanted = source.wanted(shards)
    record = _read_record(source, folder)
    missing = {name: path for name, path in wanted.items() if not _is_there(folder / name, record)}
    if foreign := [name for name in missing if (folder / name).exists() and name not in record["files"]]:
        raise ValueError(f"{folder / foreign[0]} is there and was not downloaded. Move it away, or give another --out.")
    if missing and is_offline():
        lacking = f"{folder} lacks {len(missing)} of {len(wanted)} files of {source.repository}"
        raise ValueError(f"{lacking}, and HF_HUB_OFFLINE is set.")
    if missing:
        # Later calls stay with the commit of the first one, so that all files are of one state of the branch.
        record["commit"], found = remote_files(source.repository, record["commit"] or source.revision, [*missing.values()])
        _check_known(source, found)
        _fetch(source, folder, record, missing, found)
    size = sum((folder / name).stat().st_size for name in wanted)
    state = f"{len(missing)} fetched" if missing else "all there"
    commit = f"{source.repository} at {record['commit'][:8]}"
    note(f"{folder}: {len(wanted)} files, {size / 1e6:,.1f} MB, {state}; {commit}; licence: {source.licence}")
    return [folder / name for name in wanted]


def _fetch(source: Source, folder: Path, record: dict[str, Any], missing: dict[str, str], found: list[RemoteFile]) -> None:
    names = {path: name for name, path in missing.items()}
    partial, lock = folder / PARTIAL, threading.Lock()
    shutil.rmtree(partial, ignore_errors=True)  # of a call that was killed
    check_space(folder, sum(file.bytes for file in found))
    partial.mkdir(parents=True)

    def arrived(file: RemoteFile, place: Path) -> None:
        name = names[file.path]
        if name.endswith(".jsonl") and file.path.endswith(".parquet"):
            place = _to_json_lines(place)
        facts = {"path": file.path, "bytes": place.stat().st_size, "sha256": file.sha256, "git_sha1": file.git_sha1}
        fsync(place)
        with lock:
            record["files"][name] = facts
            write_json(folder / RECORD, record)  # first: a file without a record is somebody else's
            os.replace(place, folder / name)

    try:
        fetch(source.repository, record["commit"], found, partial, arrived)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if not any(_is_there(folder / name, record) for name in record["files"]):
            (folder / RECORD).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # there may be files of the user's
                folder.rmdir()


def _check_known(source: Source, found: list[RemoteFile]) -> None:
    for file in found:
        if (known := source.sha256.get(file.path)) and file.sha256 != known:
            wrong = f"the hub has {file.sha256 or 'another file'}, known is {known}"
            raise ValueError(f"{source.repository}: {file.path} is not what it was: {wrong}. Can HF_ENDPOINT be trusted?")


def _read_record(source: Source, folder: Path) -> dict[str, Any]:
    fresh: dict[str, Any] = {"repository": source.repository, "commit": "", "files": {}}
    record = read_record(folder / RECORD, f"Delete {folder}, or give another --out.", *fresh) or fresh
    if record["repository"] != source.repository:
        raise ValueError(f"{folder} holds {record['repository']}, not {source.repository}. Give another --out.")
    return record


def _is_there(file: Path, record: dict[str, Any]) -> bool:
    """Whether the file is there. It was renamed into place when complete, so its size is proof enough."""
    facts = record["files"].get(file.name)
    return facts is not None and file.is_file() and file.stat().st_size == facts["bytes"]


def _to_json_lines(file: Path) -> Path:
    """Replace a Parquet file by JSON lines of the same rows."""
    lines = file.with_suffix(".jsonl")
    with lines.open("w", encoding="utf-8", newline="\n") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for _, row in file_rows(file))
    file.unlink()
    return lines


# ---- one file at an address ----------------------------------------------------------------------------------------


def _download_url(source: Source, folder: Path, url: str, note: Callable[[str], object]) -> list[Path]:
    """Fetch one file, or unpack the files of a .zip; the folder appears complete."""
    if (folder / RECORD).exists():
        note(f"{folder}: all there; licence: {source.licence}")
        return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != RECORD)
    if folder.exists():
        raise ValueError(f"{folder} is there and was not downloaded. Move it away, or give another --out.")
    if is_offline():
        raise ValueError(f"{folder} is not there, and HF_HUB_OFFLINE is set.")
    if not url.startswith(("https://", "http://", "file://")):
        raise ValueError(f"--url is {url!r}; accepted: an address that begins with https://, http:// or file://.")
    partial = folder.with_name(f".{folder.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    check_space(folder, int(2 * source.megabytes * 1e6))  # a .zip and what it holds
    partial.mkdir(parents=True)
    file = partial / source.url.rsplit("/", 1)[-1]
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, file.open("wb") as out:
            shutil.copyfileobj(answer, out, 1 << 20)
            promised = answer.headers.get("Content-Length")
        if promised and file.stat().st_size != int(promised):
            raise ValueError(f"{url} ended after {file.stat().st_size} of {promised} bytes. Run it again.")
        facts: dict[str, Any] = {"repository": url, "commit": "", "sha256": sha256(file), "files": {}}
        if file.suffix == ".zip":  # even if another address names it otherwise
            _unpack(file, partial)
        write_json(partial / RECORD, facts)
        partial.rename(folder)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{url} is no whole .zip ({error}). Run it again, or give another --url.") from error
    except urllib.error.HTTPError as error:
        raise ValueError(f"{url} answers {error.code}. Give its address of today: --url.") from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise ValueError(f"{url} cannot be reached ({error}). --url names another address, HTTPS_PROXY a proxy.") from None
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise FullDiskError(f"{folder}: the disk is full. Make room and run it again.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    note(f"{folder}: fetched, sha256 {facts['sha256'][:16]}...; licence: {source.licence}")
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != RECORD)


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack a .zip into `folder`, without the single top folder that holds all its files."""
    with zipfile.ZipFile(archive) as packed:
        names = [name for name in packed.namelist() if not name.endswith("/") and not name.startswith("__MACOSX")]
        top = os.path.commonpath([*names]) if len(names) > 1 else ""
        for name in names:
            target = folder / os.path.relpath(name, top or ".")
            if not target.resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"{archive.name} holds {name}, which lies outside of it: it was not unpacked.")
            target.parent.mkdir(parents=True, exist_ok=True)
            with packed.open(name) as content, target.open("wb") as out:
                shutil.copyfileobj(content, out, 1 << 20)
    archive.unlink()
