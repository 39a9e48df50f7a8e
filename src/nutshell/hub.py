"""The one place that talks to the Hugging Face hub: files down, checked against the hub's own hashes, and model folders up.

huggingface_hub does the transport: proxies, tokens, a mirror by HF_ENDPOINT, offline mode by HF_HUB_OFFLINE, pauses that a server
asks for, and going on inside a file where a connection was cut. What it lacks stands here: the hash of the bytes that came, one
progress bar for all files, and errors of one line.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nutshell.files import FULL_DISK, FullDiskError, sha256

WORKERS = 8
ATTEMPTS = 4
"""Of a request that the server or the network refused for a moment; pauses of 1, 2 and 4 s between them."""
PATHS_PER_REQUEST = 500
AGAIN = "What has arrived is kept: run it again later. HF_ENDPOINT names a mirror, HTTPS_PROXY a proxy."
SPARE_BYTES = 64 << 20
"""Stays free on the disk."""


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file of a commit, as the hub describes it."""

    path: str
    bytes: int
    sha256: str
    """Of a large file (LFS); small ones have the hash of git in its place."""
    git_sha1: str

    def is_as(self, file: Path) -> bool:
        """Whether these are the bytes that the hub promised."""
        if file.stat().st_size != self.bytes:
            return False
        if self.sha256:
            return sha256(file) == self.sha256
        return hashlib.sha1(f"blob {self.bytes}\0".encode() + file.read_bytes()).hexdigest() == self.git_sha1


def remote_files(repository: str, revision: str, paths: list[str]) -> tuple[str, list[RemoteFile]]:
    """The commit that a revision stands for, and what the hub says of these files of a data set.

    ValueError where the hub cannot be reached, refuses, or lacks one of them.
    """
    api = _api()
    commit = _patiently(repository, lambda: api.dataset_info(repository, revision=revision).sha)
    found = []
    for first in range(0, len(paths), PATHS_PER_REQUEST):
        asked = paths[first : first + PATHS_PER_REQUEST]
        for info in _patiently(repository, partial(api.get_paths_info, repository, asked, revision=commit, repo_type="dataset")):
            large = info.lfs.sha256 if info.lfs else ""
            found.append(RemoteFile(path=info.path, bytes=info.size, sha256=large, git_sha1=info.blob_id))
    if missing := sorted(set(paths).difference(file.path for file in found)):
        raise ValueError(f"{repository} has no {missing[0]} at {commit[:8]} ({len(missing)} of {len(paths)} files are missing).")
    return commit, found


def fetch(
    repository: str, commit: str, files: list[RemoteFile], folder: Path, arrived: Callable[[RemoteFile, Path], object]
) -> None:
    """Fetch files into `folder`, several at once; `arrived` gets each one when its bytes are proven, from one of the threads.

    A file with other bytes than promised is thrown away and fetched once more. ValueError after that, and where the disk is full,
    the network fails or the hub refuses; what had arrived is kept.
    """
    with _progress(repository, sum(file.bytes for file in files)) as counting:
        pool = ThreadPoolExecutor(min(WORKERS, len(files) or 1))
        try:
            jobs = [pool.submit(_fetch_one, repository, commit, file, folder, counting, arrived) for file in files]
            for job in jobs:
                job.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _fetch_one(
    repository: str, commit: str, file: RemoteFile, folder: Path, counting: Any, arrived: Callable[[RemoteFile, Path], object]
) -> None:
    from huggingface_hub import constants, hf_hub_download

    for _ in range(2):
        place = _patiently(
            repository,
            lambda: hf_hub_download(
                repository, file.path, repo_type="dataset", revision=commit, local_dir=folder, endpoint=constants.ENDPOINT,
                tqdm_class=counting,
            ),
        )  # fmt: skip
        if file.is_as(Path(place)):
            with _one_line(repository):
                arrived(file, Path(place))
            return
        Path(place).unlink()
    raise ValueError(
        f"{repository}: {file.path} came twice with other bytes than the hub promises ({file.sha256 or file.git_sha1}). It was "
        "thrown away. Run the same command again, from another network or mirror (HF_ENDPOINT) if it stays so."
    )


def free_bytes(folder: Path) -> int:
    """Of the disk of a folder that may not exist yet."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def check_space(folder: Path, needed: int) -> None:
    """FullDiskError where the disk of `folder`, which may not exist yet, has less than `needed` bytes free."""
    if (free := free_bytes(folder)) < needed + SPARE_BYTES:
        needs = f"{folder} needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free"
        raise FullDiskError(f"{needs}. Make room, or name another disk.")


def upload(folder: Path, repository: str, *, private: bool, card: str) -> str:
    """Put a folder into a model repository, made where it does not exist, with `card` as its README.md; the commit's address."""
    from huggingface_hub import CommitOperationAdd

    api = _api()
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "README.md"]
    additions = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
    additions.append(CommitOperationAdd("README.md", card.encode()))
    _patiently(repository, lambda: api.create_repo(repository, private=private, exist_ok=True))
    message = "Upload by nutshell push"
    return str(_patiently(repository, lambda: api.create_commit(repository, additions, commit_message=message)))


# ---- errors and progress -------------------------------------------------------------------------------------------


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids every request."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _api() -> Any:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # what is mended is no news, and the rest is said here
    return HfApi(endpoint=constants.ENDPOINT, library_name="nutshell")


def _patiently(repository: str, request: Callable[[], Any]) -> Any:
    """The answer of a request, asked again where it failed for a moment."""
    for attempt in range(ATTEMPTS):
        try:
            with _one_line(repository):
                return request()
        except _MomentaryError as error:
            if attempt == ATTEMPTS - 1:
                raise ValueError(str(error)) from error
            time.sleep(2**attempt)
    raise AssertionError


class _MomentaryError(Exception):
    """What a second attempt may mend."""


@contextmanager
def _one_line(repository: str) -> Iterator[None]:
    """Errors of the hub and the network as ValueError, of a full disk as FullDiskError, of one line that says what to do."""
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.OfflineModeIsEnabled:
        raise ValueError(f"{repository} is not asked: HF_HUB_OFFLINE is set. Unset it, or copy the files here by hand.") from None
    except errors.LocalTokenNotFoundError as error:
        raise ValueError(f"{repository} wants to know who you are: `hf auth login`, or HF_TOKEN=...") from error
    except errors.GatedRepoError as error:
        raise ValueError(
            f"{repository} is gated. Accept its terms on its page, then name yourself: `hf auth login`, or HF_TOKEN=..."
        ) from error
    except (errors.HfHubHTTPError, errors.HTTPError) as error:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if status in (401, 403):
            token = "it is private, or wants a token that may do this: `hf auth login`, or HF_TOKEN=..."
            raise ValueError(f"{repository}: the hub refuses ({status}); {token}") from error
        if status not in (0, 408, 429) and status < 500:
            raise ValueError(f"{repository}: the hub has no such repository, revision or file ({status}).") from error
        reason = f"cannot be reached ({type(error).__name__}: {error})"
        if status:
            reason = "asks to slow down (429)" if status == 429 else f"answers {status}"
        raise _MomentaryError(f"{repository}: {constants.ENDPOINT} {reason}. {AGAIN}") from error
    except errors.LocalEntryNotFoundError as error:  # what hf_hub_download makes of a network that fails
        if isinstance(error.__cause__, (errors.HfHubHTTPError, errors.HTTPError)):
            with _one_line(repository):
                raise error.__cause__ from None
        raise _MomentaryError(f"{repository}: {constants.ENDPOINT} cannot be reached. {AGAIN}") from error
    except OSError as error:
        if error.errno in FULL_DISK:
            raise FullDiskError(f"{repository}: the disk is full. Make room. {AGAIN}") from error
        if error.errno is None:  # huggingface_hub's own: a file that ended early
            raise _MomentaryError(f"{repository}: {str(error).splitlines()[0]}") from error
        raise


@contextmanager
def _progress(title: str, total: int) -> Iterator[type]:
    """A bar over all bytes on a terminal: a class for huggingface_hub that adds up what its own bars would show."""
    from huggingface_hub.utils import tqdm
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(title, total=total)

        class Counting(tqdm):  # type: ignore[misc]
            def __init__(self, *args: Any, **settings: Any) -> None:
                super().__init__(*args, **{**settings, "disable": True})

            def update(self, n: float | None = 1) -> None:
                bar.advance(task, n or 0)

        yield Counting
