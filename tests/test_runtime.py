"""What is decided about the machine: peaks, dtypes, fp8, ranks; and MPS where there is one."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from decoding import Rows

from nutshell.machine import cpu_dtype
from nutshell.model.config import ModelConfig
from nutshell.model.gpt import GPT
from nutshell.plan.hardware import peak_flops
from nutshell.plan.recipe import OptimizerConfig
from nutshell.plan.schedule import Schedule
from nutshell.runtime import DTYPES, Runtime, gpu_readings, refuse_fp8, start_runtime
from nutshell.train.optim import MuonAdamW, group_parameters
from nutshell.train.prefetch import MicroBatch
from nutshell.train.step import LossScaler, train_step

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H200", 989), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H100 NVL", 835),
        ("NVIDIA GH200 480GB", 989), ("NVIDIA B200", 2250), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A100-PCIE-40GB", 312), ("NVIDIA A10G", 70), ("NVIDIA A10", 125), ("NVIDIA L40S", 362), ("NVIDIA L40", 181),
        ("NVIDIA L4", 121), ("NVIDIA GeForce RTX 4090", 165), ("NVIDIA GeForce RTX 3090", 71), ("NVIDIA GeForce RTX 3090 Ti", 80),
        ("Tesla V100-SXM2-16GB", 125), ("Tesla V100-PCIE-16GB", 112), ("Tesla T4", 65), ("AMD Instinct MI300X", 1307),
    ],
)  # fmt: skip
def test_peaks_are_the_vendors_dense_ones(name, tera):
    assert peak_flops(name) == tera * 1e12


@pytest.mark.parametrize(
    "name",
    ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA L400",
     "NVIDIA GeForce GTX 1080", "Quadro RTX 6000", ""],
)  # fmt: skip
def test_a_card_that_only_sounds_like_a_known_one_has_no_peak(name):
    """nanochat 60 and 262: a wrong peak makes a wrong MFU."""
    assert peak_flops(name) is None


@pytest.mark.parametrize(
    ("device", "capability", "dtype", "words"),
    [
        ("cpu", None, "auto", "would be on cpu"),
        ("mps", None, "auto", "would be on mps"),
        ("cuda", (8, 0), "auto", "compute capability 8.0"),
        ("cuda", (9, 0), "float16", "--dtype is 'float16'"),
    ],
)
def test_fp8_is_refused_where_it_does_not_run(device, capability, dtype, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        refuse_fp8(torch.device(device), capability, dtype)


@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (10, 0), (12, 0)])
def test_fp8_is_accepted_from_ada_on(capability):
    refuse_fp8(torch.device("cuda"), capability, "auto")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine may have fp8")
def test_the_command_refuses_fp8_with_exit_code_2_and_writes_nothing(tmp_path):
    command = [sys.executable, "-m", "nutshell", "pretrain", "--fp8", "--device", "cpu", "--depth", "1", "--out", "run"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "--fp8 needs an NVIDIA GPU" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_every_dtype_can_be_asked_for_and_a_kernel_is_asked_for_once():
    for name, dtype in DTYPES.items():
        asked = []
        runtime = start_runtime(device="cpu", dtype=name, choose_attention=lambda *a: asked.append(a) or ("blocked", "why"))  # noqa: B023
        assert (runtime.dtype, runtime.attention) == (dtype, "blocked")
        assert asked == [(CPU, dtype)]
    with pytest.raises(ValueError, match="accepted: auto, float32, bfloat16, float16"):
        start_runtime(device="cpu", dtype="int8")


def test_what_ranks_exchange_is_never_on_a_device_without_float64():
    for kind, wire in (("cpu", "cpu"), ("mps", "cpu"), ("cuda", "cuda")):
        assert Runtime(device=torch.device(kind), dtype=torch.float32).wire.type == wire


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("script", ["gpu", "gpu_decoding"])
def test_the_gpu_benchmarks_say_that_they_need_one(script):
    result = subprocess.run([sys.executable, f"benchmarks/{script}.py"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "CUDA" in result.stderr


def train_and_decode(device: torch.device, dtype: torch.dtype) -> tuple[list[float], torch.Tensor]:
    """Five steps and three decoded tokens of a tiny model."""
    torch.manual_seed(0)
    model = GPT(ModelConfig(vocab_size=64, depth=2, width=32, heads=2, kv_heads=1, head_dim=16, context=32)).to(device)
    model.set_precision(dtype)
    optimizer = MuonAdamW(group_parameters(model, OptimizerConfig(), width=32, tokens_per_step=256), dtype)
    rows = torch.randint(0, 64, (4, 33), generator=torch.Generator().manual_seed(1)).to(device)
    batch = MicroBatch(rows[:, :-1], rows[:, 1:], 128)
    runtime = Runtime(device=device, dtype=dtype)
    rates = [Schedule().at(step, 5) for step in range(5)]
    losses = [train_step(model, optimizer, [batch], rate, runtime, LossScaler()).loss for rate in rates]
    frozen = model.for_inference()
    decoding = Rows(frozen, 1, device, dtype)
    logits = [decoding.feed(rows[:1, t : t + 1]) for t in range(3)]
    return losses, torch.cat(logits).cpu()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", ["cpu", "mps", "cuda"])
def test_a_tiny_model_trains_and_decodes_alike_on_every_device(device, dtype):
    available = {"cpu": True, "mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available()}
    if not available[device]:
        pytest.skip(f"this machine has no {device} device")
    losses, logits = train_and_decode(torch.device(device), dtype)
    expected, expected_logits = train_and_decode(CPU, torch.float32)
    assert losses == pytest.approx(expected, rel=0.02)
    assert torch.allclose(logits, expected_logits, atol=0.2)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells a process its own peak")
def test_peak_memory_is_of_this_process_alone():
    """A launcher that once held much memory must not count: getrusage's figure is inherited across fork and exec."""
    code = "import torch; from nutshell.runtime import peak_memory_bytes; print(peak_memory_bytes(torch.device('cpu')))"
    launcher = "import subprocess, sys; held = b'x' * (int(sys.argv[1]) << 20); subprocess.run(sys.argv[2:])"

    def started_by(megabytes: int) -> int:
        command = [sys.executable, "-c", launcher, str(megabytes), sys.executable, "-c", code]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert started_by(1000) < started_by(1) + (200 << 20)


def test_a_gpu_reading_that_the_card_lacks_is_left_out(monkeypatch):
    def unsupported(device):
        raise RuntimeError("not supported")

    assert gpu_readings(CPU) == {}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * 2**30, 8 * 2**30))
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 97)
    monkeypatch.setattr(torch.cuda, "power_draw", unsupported)
    assert gpu_readings(torch.device("cuda:1")) == {"gpu_utilisation": 0.97, "gpu_memory_gib": 3.0}


MEETING = """
import datetime, os, sys, time
import nutshell.ranks as r
from nutshell.runtime import start_runtime
r.HEARTBEAT_SECONDS, r.SILENCE_SECONDS = 0.2, 3.0
join = r.rendezvous
def joined(*arguments, **options):  # a collective of this group may last two seconds
    yield from [next(iter(join(*arguments, **options)))]
    r.COLLECTIVE_TIMEOUT = datetime.timedelta(seconds=2)
r.rendezvous = lambda *arguments, **options: [*joined(*arguments, **options)]
runtime = start_runtime(device="cpu", dtype="float32", ranks=True)
if runtime.is_main:
    time.sleep(4)  # it prepares data for longer than silence or a collective may last
print(runtime.agree({"depth": 1 + runtime.rank, "left": None}), flush=True)
runtime.barrier()
if runtime.rank == 1:
    os._exit(0)  # dies without a word
try:
    runtime.barrier()
except ConnectionError as error:
    print(error, flush=True)
os._exit(0)
"""


def start_ranks(code: str) -> list[str]:
    """Standard output of two ranks that run `code`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    commands = [
        subprocess.Popen(
            [sys.executable, "-c", code], text=True, stdout=subprocess.PIPE,
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
        )
        for rank in range(2)
    ]  # fmt: skip
    return [command.communicate(timeout=120)[0] for command in commands]


def test_f10_f29_ranks_wait_as_long_as_rank_0_takes_and_still_notice_a_dead_one():
    """F10, F29: what ranks branch on is rank 0's, however long that takes, and a rank that dies is named."""
    zero, one = start_ranks(MEETING)
    assert zero.splitlines()[0] == one.splitlines()[0] == "{'depth': 1, 'left': None}"
    assert "rank 1 of 2 has not been heard of for 3 s" in zero


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {"RANK": "0", "WORLD_SIZE": "2"},
            "MASTER_ADDR, MASTER_PORT missing. Start with torchrun. To train with one process",
        ),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK is 2; accepted: 0 to 1"),
        ({"RANK": "first", "WORLD_SIZE": "2"}, "RANK in the environment is 'first'; accepted: a number"),
    ],
)
def test_f35_ranks_of_the_environment_are_for_training_alone(monkeypatch, variables, words):
    """F35: a pod sets RANK and WORLD_SIZE. Inference and preparation are one process; training says what is missing."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    runtime = start_runtime(device="cpu", dtype="float32")
    assert (runtime.rank, runtime.world_size, runtime.meeting) == (0, 1, None)
    with pytest.raises(ValueError, match=re.escape(words)):
        start_runtime(device="cpu", dtype="float32", ranks=True)


def test_f35_a_rank_without_others_is_the_only_one(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert start_runtime(device="cpu", dtype="float32", ranks=True).is_main


def test_f24_the_dtype_of_a_cpu_does_not_hang_on_a_clock(monkeypatch):
    """F24: two starts on a busy machine choose alike, and a run keeps what it was planned with on that kind of device."""
    monkeypatch.setattr("nutshell.runtime.matmul_flops", lambda device, dtype: pytest.fail("timed a product"))
    assert start_runtime(device="cpu").dtype_name == cpu_dtype()
    for name in ("float32", "bfloat16"):
        assert start_runtime(device="cpu", auto_dtype={"cpu": name}).dtype_name == name
        assert start_runtime(device="cpu", auto_dtype={"cuda": name}).dtype_name == cpu_dtype()
    assert start_runtime(device="cpu", dtype="float16", auto_dtype={"cpu": "float32"}).dtype_name == "float16"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such signal")
@pytest.mark.parametrize(("of_torchrun", "expected"), [(True, signal.SIGKILL), (False, 0)])
def test_a_rank_dies_with_its_torchrun_from_its_first_moment_on(of_torchrun, expected):
    """Killed while its ranks still import torch, torchrun left them behind: they waited for each other for ever."""
    code = (
        "import ctypes, sys\nfrom nutshell.cli.main import main\n"
        "try:\n    main(['--version'])\nfinally:\n"
        "    found = ctypes.c_int()\n    ctypes.CDLL(None).prctl(2, ctypes.byref(found))\n"  # PR_GET_PDEATHSIG
        "    print(found.value, 'torch' in sys.modules)"
    )
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "job"} if of_torchrun else os.environ
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout
    assert said.splitlines()[-1] == f"{int(expected)} False"
