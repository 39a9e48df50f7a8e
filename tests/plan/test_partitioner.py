"""F5: the activations that a plan counts on a GPU are those that Inductor's own partitioner keeps of a compiled step."""

import pytest
import torch
from functorch.compile import aot_module_simplified, make_boxed_func, min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table

from nutshell.model import attention, decoder
from nutshell.model.build import build_model
from nutshell.plan.memory import activation_bytes
from nutshell.plan.recipe import Recipe
from nutshell.plan.shape import make_shape

VIEWS = ("view", "alias", "getitem", "permute", "split", "unsqueeze", "expand", "slice", "t.default", "transpose")


@torch.library.custom_op("nutshell_tests::attend", mutates_args=())
def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A fused attention kernel as the partitioner sees one: opaque, it keeps its inputs, its output and a number a query."""
    return torch.zeros_like(q), q.new_zeros(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("nutshell_tests::attend_backward", mutates_args=())
def attend_backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, y: torch.Tensor, lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)


attend.register_fake(lambda q, k, v: (torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)))
attend_backward.register_fake(lambda grad, q, k, v, y, lse: (torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)))
attend.register_autograd(
    lambda ctx, grad, _: attend_backward(grad, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs, *output),
)


def kept_bytes(shape, rows: int, dtype: torch.dtype, monkeypatch) -> int:
    """What the compiled forward pass hands to the backward pass and grows with the tokens; each storage once."""
    monkeypatch.setattr(attention, "causal_attention", lambda q, k, v, mask: attend(q, k, v)[0])
    monkeypatch.setattr(decoder, "make_mask", lambda *a, **k: None)
    model = build_model(shape).set_precision(dtype)
    graphs = []

    def partition(joint, inputs, **more):
        graphs.append(min_cut_rematerialization_partition(joint, inputs, **more))
        return graphs[-1]

    def backend(graph, inputs):
        def compiler(module, _):
            return make_boxed_func(module.forward)

        return aot_module_simplified(
            graph, inputs, fw_compiler=compiler, bw_compiler=compiler, partition_fn=partition,
            decompositions=select_decomp_table(),
        )  # fmt: skip

    torch._dynamo.reset()
    ids = torch.randint(1, shape.vocab_size, (rows, shape.context + 1))
    torch.compile(model, backend=backend, dynamic=False)(ids[:, :-1], ids[:, 1:])
    torch._dynamo.reset()
    (forward, _), *others = graphs
    assert not others, "the step is not one graph"
    kept = {}
    for node in next(n for n in forward.graph.nodes if n.op == "output").args[0]:
        while getattr(node, "op", "") == "call_function" and any(word in str(node.target) for word in VIEWS):
            node = node.args[0]
        value = node.meta.get("val") if getattr(node, "op", "") == "call_function" else None
        for part in value if isinstance(value, (tuple, list)) else (value,):
            tokens = (rows * shape.context,), (rows, shape.context)
            if isinstance(part, torch.Tensor) and (part.shape[:1] in tokens or part.shape[:2] in tokens):
                kept[node.name, tuple(part.shape), part.dtype] = part.numel() * part.element_size()
    return sum(kept.values())


@pytest.mark.parametrize(
    ("depth", "more"),
    [
        (3, {}),
        (3, {"kv_heads": 1}),
        (2, {"architecture": "portable"}),
        (3, {"residual_scales": False, "value_embeddings": False}),
    ],
)
def test_f5_what_a_compiled_step_keeps_is_counted(depth, more, monkeypatch):
    shape, rows = make_shape(Recipe(context=112, **more), depth, 500), 3
    kept = kept_bytes(shape, rows, torch.bfloat16, monkeypatch)
    each, _ = activation_bytes(shape, dtype="bfloat16", gpu=True)
    of_loss = 2 * rows * shape.context * shape.width  # the gradient of the hidden states
    assert rows * each + of_loss == pytest.approx(kept, rel=0.10)
