"""Exported and imported models, and the command that does it."""

import os
import tempfile

import pytest
from small_models import save_folder

os.environ.setdefault("HF_HUB_OFFLINE", "1")
MODULES = tempfile.TemporaryDirectory()  # where transformers copies the code of a folder; it reads this when it is imported
os.environ["HF_MODULES_CACHE"] = MODULES.name


@pytest.fixture(scope="session")
def portable(tmp_path_factory):
    return save_folder(tmp_path_factory.mktemp("portable") / "model")


@pytest.fixture(scope="session")
def speed(tmp_path_factory):
    changes = {"architecture": "speed", "depth": 4, "window_pattern": "SL"}
    return save_folder(tmp_path_factory.mktemp("speed") / "model", **changes)


@pytest.fixture
def command(run_command):
    """Runs `nutshell ...`: (exit code, standard output, standard error)."""
    return lambda *arguments: run_command(list(map(str, arguments)))


@pytest.fixture
def refused(command):
    """Checks that a command ends with one message and exit code 2, and writes nothing."""

    def check(folder, message, *arguments):
        before = sorted(folder.rglob("*"))
        code, out, err = command(*arguments)
        assert (code, out) == (2, "")
        assert message in err
        assert err.startswith("nutshell: error: ")
        assert sorted(folder.rglob("*")) == before

    return check
