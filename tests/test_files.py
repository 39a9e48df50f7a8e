"""Files are written whole or not at all, whatever stands where they go."""

import errno
import os
import threading

import pytest

from nutshell.files import files_below, read_record, sole_writer, write_json, write_text


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_named_by_every_file_that_is_written_whole(tmp_path):
    """Of the kind of F43: reports, plans and rollouts too."""
    (tmp_path / f".plan.json.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*plan\.json'") as caught:
        write_json(tmp_path / "plan.json", {})
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_a_text_that_cannot_be_encoded_leaves_nothing(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "report.md", "half a pair \ud800")
    assert not list(tmp_path.iterdir())


def test_two_processes_write_the_same_file(tmp_path, monkeypatch):
    """Of the kind of F34: the second one's temporary file was the first one's, which then was gone."""
    pids = iter([1, 2])
    monkeypatch.setattr(os, "getpid", lambda: next(pids))

    def meanwhile(path):
        monkeypatch.undo()
        monkeypatch.setattr(os, "getpid", lambda: next(pids))
        write_text(tmp_path / "report.md", "theirs")
        assert (tmp_path / "report.md").read_text() == "theirs"

    monkeypatch.setattr("nutshell.files.fsync", meanwhile)
    write_text(tmp_path / "report.md", "ours")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["ours"]


@pytest.mark.parametrize("content", ["{", "[]", "3", '{"b": 1}', "\udcff"])
def test_damaged_records_are_named_with_the_way_out(tmp_path, content):
    """sources.json, ablation.json, sweep.json, made.json and a download's record: each ended in a traceback of json."""
    path = tmp_path / "record.json"
    assert read_record(path, "Delete it.", "a") == {}
    path.write_text(content, errors="surrogateescape")
    with pytest.raises(ValueError, match=r"record\.json is damaged \(.+\)\. Delete it\."):
        read_record(path, "Delete it.", "a")
    write_json(path, {"a": 1})
    assert read_record(path, "Delete it.", "a") == {"a": 1}


def test_a_folder_has_one_writer(tmp_path):
    folder, refused = tmp_path / "new" / "shards", pytest.raises(ValueError, match=r"another process is writing .*shards")
    with sole_writer(folder), refused, sole_writer(folder):
        pass
    with sole_writer(folder):
        pass
    assert list((tmp_path / "new").iterdir()) == []


def test_a_link_stays_one_and_a_pipe_is_written_into(tmp_path):
    """`--report /dev/stdout` once replaced that device by a file."""
    target, link, pipe = tmp_path / "elsewhere.md", tmp_path / "report.md", tmp_path / "pipe"
    target.write_text("old")
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    os.mkfifo(pipe)
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "told")
    reader.join()
    assert got == ["told"]
    assert pipe.is_fifo()


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path, monkeypatch):
    """Of the kind of F33 and F36: a part of the data that is left out without a word."""
    (tmp_path / "open").mkdir()
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(PermissionError, match="closed"):
        list(files_below(tmp_path))
