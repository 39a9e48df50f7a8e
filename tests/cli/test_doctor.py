import json

import pytest

from nutshell.cli import doctor
from nutshell.cli.main import main


def ask(*flags):
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *flags])
    return ended.value.code


def test_what_is_here_is_told(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "nvidia_gpus", list)
    assert ask("--json") == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert list(findings) == list(doctor.CHECKS)
    assert not any(findings[name]["advice"] for name in doctor.NEEDED)


def test_a_gpu_that_torch_does_not_see_is_missing(tmp_path, capsys, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert ask() == 1
    told = capsys.readouterr().out
    assert "MISSING  device" in told
    assert "1 GPU(s) (NVIDIA H100 80GB HBM3), which this torch cannot use" in told


def test_forgotten_ranks_and_what_breaks_are_told(capsys, monkeypatch):
    def broken():
        raise RuntimeError("no such thing")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(doctor.CHECKS, "disk", broken)
    assert ask() == 1
    told = capsys.readouterr().out
    assert "unset RANK WORLD_SIZE LOCAL_RANK" in told
    assert "no such thing" in told
