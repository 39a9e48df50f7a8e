"""No pickle is ever loaded, and no text run as our own code: promise 3, and what is said of files from elsewhere."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "nutshell"
FILES = sorted(SOURCE.rglob("*.py"))
IN_THE_SANDBOX = {"infer/sandbox_child.py", "infer/checker.py", "infer/tools.py"}  # run a model's programs, as texts of their own


def calls(file: Path) -> list[tuple[str, ast.Call]]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_nothing_is_unpickled_or_evaluated(file):
    """torch.load runs what a file says unless it is told not to, and numpy.load can be asked to."""
    for name, call in calls(file):
        said = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name.endswith("torch.load"):
            assert said.get("weights_only") == "True", f"{file}:{call.lineno}"
        assert said.get("allow_pickle", "False") == "False", f"{file}:{call.lineno}"
        assert name not in ("eval", "exec", "pickle.load", "pickle.loads", "marshal.loads", "joblib.load") or (
            str(file.relative_to(SOURCE)) in IN_THE_SANDBOX
        ), f"{file}:{call.lineno} calls {name}"
        assert said.get("shell", "False") == "False", f"{file}:{call.lineno} runs a shell"
