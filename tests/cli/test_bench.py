"""`nutshell bench`: figures that hold together, of a recipe and of a trained model."""

import json

import pytest
import torch

from nutshell import checkpoint
from nutshell.cli.main import main
from nutshell.model.build import build_model
from nutshell.model.config import ModelConfig
from nutshell.tokenizer import Tokenizer

SMALL = ["--width", "64", "--context", "64", "--vocab-size", "300", "--micro-batch-size", "2"]


def bench(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(["bench", *map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    return end.value.code, json.loads(out) if out else None, err


def test_a_recipe_is_timed(tmp_path, capsys):
    code, found, err = bench(capsys, "--depth", "1", *SMALL, "--out", tmp_path / "run")
    assert code == 0, err
    assert found["rows"] == 2
    assert found["tokens_per_second"] == pytest.approx(2 * 64 / found["step_seconds"])
    assert 0 < found["mfu"] < 1
    assert found["peak_memory_bytes"] > 1e6
    assert all(rate > 0 for rate in found["decode_tokens_per_second"].values())
    assert not list(tmp_path.iterdir())  # no run was begun


@pytest.mark.slow
def test_a_trace_of_training_steps_is_written(tmp_path, capsys):
    trace = tmp_path / "trace.json"
    code, _, err = bench(capsys, "--depth", "1", *SMALL, "--profile", trace, "--out", tmp_path / "run")
    assert code == 0, err
    names = {event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"]}
    assert "aten::mm" in names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trace.json"]


@pytest.mark.parametrize("architecture", ["speed", "gpt2"])  # native decoding, and torch's
def test_a_models_shape_is_timed(architecture, tmp_path, capsys):
    torch.manual_seed(0)
    tok = Tokenizer([])
    more = {} if architecture == "speed" else {"mlp_width": 128, "window_pattern": "L", "tied": True}
    config = ModelConfig(
        architecture=architecture, vocab_size=tok.vocab_size, depth=2, width=64, heads=2, kv_heads=2, head_dim=32, context=32,
        bos_id=tok.bos_id, **more,
    )  # fmt: skip
    checkpoint.save_model_folder(tmp_path / "model", build_model(config), tok)
    code, found, err = bench(capsys, tmp_path / "model", "--micro-batch-size", "1")
    assert code == 0, err
    assert (found["depth"], found["width"], found["context"], found["rows"]) == (2, 64, 32, 1)


def test_what_cannot_be_timed_is_refused(tmp_path, capsys):
    for arguments, message in (
        (["--budget", "9min", "--out", tmp_path / "run"], "Give --depth 4, or a trained model."),
        (["--depth", "1", "--profile", tmp_path / "trace.txt"], "Accepted: a file that ends in .json or .json.gz."),
        (["--depth", "1", "--profile", tmp_path / "no" / "trace.json"], "does not exist. Make it"),
        ([tmp_path / "nowhere"], "not found"),
    ):
        code, found, err = bench(capsys, *arguments)
        assert (code, found) == (2, None)
        assert message in err
