"""Who may import whom, short files, and imports without side effects (docs/design.md)."""

import ast
import importlib
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "nutshell"
ALLOWED = {
    "config": set(),
    "files": set(),
    "text_files": {"files"},
    "machine": set(),
    "ranks": set(),
    "runtime": {"machine", "ranks"},
    "metrics": {"files"},
    "hub": {"files"},
    "data": {"files", "hub", "text_files"},
    "tokenizer": {"data", "files", "text_files"},  # training reads files by the one reader of text, imported when it is needed
    "model": set(),
    "model_folder": {"files", "model", "tokenizer"},
    "checkpoint": {"files", "model", "model_folder", "tokenizer"},
    "plan": {"config", "files", "model"},
    "run": {"checkpoint", "files", "metrics", "model", "plan", "runtime", "tokenizer"},
    "report": {"files", "metrics", "plan", "text_files"},
    "tasks": {"data", "files", "infer", "text_files", "tokenizer"},  # HumanEval runs programs in the sandbox
    "infer": {"machine", "model", "tokenizer"},
    "eval": {"infer", "tasks", "data", "files", "tokenizer", "model"},
    "interop": {"checkpoint", "files", "hub", "infer", "model", "tokenizer"},  # a page has native decoding's shape and weights
    "serve": {"checkpoint", "files", "infer", "model_folder", "tokenizer"},
    "train": {
        "checkpoint",
        "config",
        "data",
        "eval",
        "files",
        "infer",
        "metrics",
        "model",
        "plan",
        "report",
        "run",
        "runtime",
        "tasks",
        "text_files",
        "tokenizer",
    },
}
FILES = sorted(SOURCE.rglob("*.py"))


def part_of(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_parts(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide who imports whom"
            names = [node.module] if node.module != "nutshell" else [f"nutshell.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name and name.startswith("nutshell.")}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(SOURCE)))
def test_imports_follow_the_rules(file):
    part = part_of(file)
    if part in ("cli", "__init__", "__main__"):
        return
    assert part in ALLOWED, f"{part} has no rule; add one here and in docs/design.md"
    extra = imported_parts(file) - ALLOWED[part] - {part}
    assert not extra, f"{part} may not import {sorted(extra)}"


def test_only_the_command_line_reads_argv():
    readers = [str(f.relative_to(SOURCE)) for f in FILES if "sys.argv" in f.read_text(encoding="utf-8")]
    assert readers == ["cli/main.py"]


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(SOURCE)))
def test_no_file_has_two_subjects(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 500


def test_importing_everything_opens_no_file():
    skipped = ("__main__.py", "modeling_nutshell.py")  # the second is for folders that transformers opens, and imports it
    modules = [module_name(file) for file in FILES if file.name not in skipped]
    code = f"""
import sys, importlib
modules = {modules!r}
import torch, numpy, pyarrow.parquet, safetensors.torch, fastapi, uvicorn, tyro, rich.progress, prometheus_client  # theirs may
def hook(event, args):
    if event == "open" and isinstance(args[0], str) and not args[0].endswith((".py", ".pyc", ".so", ".pyd")):
        if "__pycache__" not in args[0]:
            import traceback
            ours = [f for f in traceback.extract_stack() if "nutshell" in f.filename and "<frozen" not in f.filename]
            if ours and ours[-1].line and "import" not in ours[-1].line:
                raise SystemExit(f"importing opens {{args[0]}} at {{ours[-1]}}")
sys.addaudithook(hook)
for name in modules:
    importlib.import_module(name)
print("clean")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout.strip().endswith("clean"), result.stderr[-2000:] + result.stdout


def test_no_environment_is_read_at_module_level():
    for file in FILES:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        top = [n for n in tree.body if not isinstance(n, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)]
        for node in top:
            assert "environ" not in ast.dump(node), file
            assert "getenv" not in ast.dump(node), file


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")


def test_no_two_modules_import_each_other():
    """Nor does one import itself by way of others. An import inside a function counts too."""
    known = {module_name(file) for file in [*FILES, *SOURCE.rglob("*.pyi")]}
    graph = {}
    for file in FILES:
        found, tree = set(), ast.parse(file.read_text(encoding="utf-8"))
        for_mypy = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)]
        skipped = {node for branch in for_mypy for node in ast.walk(branch)}
        for node in set(ast.walk(tree)) - skipped:
            if isinstance(node, ast.ImportFrom) and node.module:
                below = {f"{node.module}.{alias.name}" for alias in node.names} & known
                found |= below or ({node.module} & known)
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names} & known
        graph[module_name(file)] = found - {module_name(file)}
    TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_plans_are_made_without_torch():
    modules = [module_name(file) for file in FILES if part_of(file) == "plan"]
    code = f"import sys, importlib; [importlib.import_module(m) for m in {modules}]; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "False"


def test_the_repository_names_no_machine_and_no_mirror():
    """Paths of a developer's machine and addresses of package mirrors would be in every clone."""
    root = SOURCE.parents[1]
    private = re.compile(r"/work/(main|shared)|/tmp/wt|/home/\w+/|index-url *=? *http|artifactory|" + r"registry\.")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        file = root / name
        if file == Path(__file__) or file.suffix not in (
            ".py",
            ".rs",
            ".toml",
            ".md",
            ".sh",
            ".js",
            ".html",
            ".css",
            ".lock",
            ".json",
            "",
        ):
            continue
        if file.is_file():
            found = private.search(file.read_text(encoding="utf-8", errors="replace"))
            assert not found, f"{name} has {found and found[0]!r}"


def test_importing_nutshell_is_light():
    code = "import sys, nutshell, nutshell.cli.main; print('torch' in sys.modules or 'tyro' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize("script", sorted((SOURCE.parents[1] / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_what_a_benchmark_imports_is_there(script):
    """Benchmarks run by hand: a name that moved would be missed only then."""
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "nutshell":
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name) or importlib.import_module(f"{node.module}.{name.name}"), name.name
