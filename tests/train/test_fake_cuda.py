"""The CUDA paths of a step on torch's fake tensors: shapes, dtypes and devices without a GPU.

Numbers need a real one; so do autograd's backward pass and the kernels flash3, varlen and flex, which ask the driver.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nutshell.model.build import build_model
from nutshell.model.config import ModelConfig
from nutshell.model.loss import loss_and_grad
from nutshell.plan.recipe import OptimizerConfig
from nutshell.train.optim import MuonAdamW, group_parameters

SHAPE = {"vocab_size": 64, "depth": 4, "width": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "context": 128}
PORTABLE = {"architecture": "portable", "mlp_width": 96, "window_pattern": "L"}


@pytest.mark.parametrize(("fp8", "more"), [(False, {}), (True, {}), (False, PORTABLE)])
def test_forward_loss_and_optimizer_on_cuda_keep_shapes_dtypes_and_device(fp8, more, monkeypatch):
    # The loss is compiled by itself on CUDA; here its plain formula runs.
    monkeypatch.setattr("nutshell.model.loss._compiled_loss_and_grad", lambda: loss_and_grad)
    with FakeTensorMode():
        with torch.device("cuda"):  # the weights only: what a step makes must name its device
            model = build_model(ModelConfig(**SHAPE, **more))
        model.set_precision(torch.bfloat16, fp8=fp8)
        groups = group_parameters(model, OptimizerConfig(), width=64, tokens_per_step=256)
        optimizer = MuonAdamW(groups, torch.bfloat16)
        ids = torch.zeros(2, 128, dtype=torch.long, device="cuda")
        loss = model(ids, ids)
        assert (loss.shape, loss.dtype, loss.device.type) == ((), torch.float32, "cuda")
        assert loss.requires_grad
        for p in model.parameters():
            p.grad = torch.empty_like(p)
        assert optimizer.reduce().device.type == "cuda"
        optimizer.step(lr=1.0, momentum=0.9, decay=1.0)
        assert all(value.device.type == "cuda" for value in optimizer.state.values())
