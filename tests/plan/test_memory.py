"""The memory estimate against what autograd and the optimizer really hold, and what it decides."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nutshell.model.build import build_model
from nutshell.model.config import ModelConfig
from nutshell.model.gpt import GPT
from nutshell.plan.hardware import CARDS, GIB, Hardware, parse_machine
from nutshell.plan.memory import activation_bytes, fitting_cards, fitting_rows, loss_bytes, memory_by_part, state_bytes
from nutshell.plan.plan import draft_plan, for_hardware, make_plan
from nutshell.plan.recipe import Recipe
from nutshell.plan.shape import make_shape
from nutshell.runtime import device_memory_bytes
from nutshell.train.optim import MuonAdamW, group_parameters

SHAPES = [
    (1, 64, 300, 8, "float32", {}),
    (2, 256, 512, 4, "float32", {}),
    (3, 512, 1024, 2, "float32", {"kv_heads": 1}),
    (4, 512, 2048, 2, "bfloat16", {}),
    (6, 512, 4096, 2, "bfloat16", {}),
    (2, 256, 512, 4, "float32", {"architecture": "gpt2"}),
    (3, 512, 1024, 2, "float32", {"architecture": "gpt2"}),
    (4, 1024, 2048, 2, "bfloat16", {"architecture": "gpt2"}),
]


@pytest.mark.parametrize(("depth", "context", "vocab_size", "rows", "dtype", "more"), SHAPES)
def test_the_activations_are_those_that_autograd_holds(depth, context, vocab_size, rows, dtype, more):
    shape = make_shape(Recipe(context=context, **more), depth, vocab_size)
    model = build_model(shape).set_precision(getattr(torch, dtype))
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    held = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor, so that its memory is not given out again
        return tensor

    ids = torch.randint(1, vocab_size, (rows, context + 1))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(ids[:, :-1], ids[:, 1:])
    each, fixed = activation_bytes(shape, dtype=dtype, gpu=False)
    # The loss holds the gradients of the hidden states and of the head.
    of_loss = 4 * vocab_size * shape.width + rows * context * shape.width * (4 if dtype == "float32" else 2)
    assert rows * each + fixed + of_loss == pytest.approx(sum(size for size, _ in held.values()), rel=0.15)
    assert of_loss < loss_bytes(shape, rows, dtype=dtype, gpu=False)
    loss.backward()


@pytest.mark.parametrize("more", [{}, {"kv_heads": 1}])
def test_weights_gradients_and_state_are_counted(more):
    shape = make_shape(Recipe(**more), 3, 1000)
    model = GPT(shape)
    model(torch.ones(1, 8, dtype=torch.long), torch.ones(1, 8, dtype=torch.long)).backward()
    optimizer = MuonAdamW(group_parameters(model, Recipe().optimizer, width=shape.width, tokens_per_step=4096))
    found = {
        "weights": sum(p.nbytes for p in model.parameters()),
        "gradients": sum(p.grad.nbytes for p in model.parameters() if p.grad is not None),
        "optimizer": sum(t.nbytes for t in optimizer.state_dict().values()),
    }
    assert found == pytest.approx(state_bytes(shape), rel=0.01)
    assert state_bytes(shape, ranks=4)["optimizer"] == state_bytes(shape)["optimizer"] // 4


@given(
    depth=st.sampled_from([4, 12, 20]),
    memory=st.floats(1, 200),
    gpu=st.booleans(),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_the_rows_that_fit_are_the_most(depth, memory, gpu, dtype):
    shape = make_shape(Recipe(), depth, 32768)
    hardware = Hardware(device="cuda" if gpu else "cpu", dtype=dtype, memory_bytes=int(memory * GIB))
    rows = fitting_rows(shape, hardware)

    def total(rows):
        return sum(memory_by_part(shape, rows, hardware).values())

    assert rows == 0 or total(rows) <= memory * GIB
    assert rows == 4096 or total(rows + 1) > memory * GIB


def test_larger_cards_take_more_rows():
    cards = list(fitting_cards(make_shape(Recipe(), 12, 32768)).values())
    assert cards == sorted(cards)
    assert 0 < cards[0] < cards[-1]


def test_a_public_figure_of_80_gb():
    """nanochat's run1000.sh: depth 32, vocabulary 65,536, 8 ranks; 8 rows of 2048 tokens fit 80 GB, 16 do not."""
    shape = ModelConfig(vocab_size=65536, depth=32, width=2048, heads=16, kv_heads=16, head_dim=128, window_pattern="L")
    value_embeddings = 16 * 65536 * 2048  # that model had none: fp32 weights, gradients and a share of AdamW's state
    hardware = Hardware(device="cuda", dtype="bfloat16", world_size=8)
    parts = {rows: memory_by_part(shape, rows, hardware) for rows in (8, 16)}
    total = {rows: sum(part.values()) - value_embeddings * (4 + 4 + 1) for rows, part in parts.items()}
    assert 0.6 * 80 * GIB < total[8] < 80 * GIB < total[16]


# ---- what it decides -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("card", ["RTX4060", "RTX4070", "RTX4090", "H100"])
def test_the_batch_is_fitted_to_the_card(card):
    """nc 157, 228, 443, lg 1432: a consumer GPU gets fewer rows and more micro-batches, not an error out of memory."""
    plan = draft_plan(Recipe(depth=10, gpu=card))
    assert sum(plan.forecast.memory.values()) <= parse_machine(card).memory_bytes
    assert plan.micro_batch_size * plan.grad_accum_steps * plan.model.context == plan.stages["pretrain"].tokens_per_step
    assert plan.micro_batch_size <= fitting_rows(plan.model, plan.hardware)


def test_what_does_not_fit_is_refused_with_its_sizes():
    with pytest.raises(
        ValueError, match=r"depth 32, width 2048 does not fit: one row of 2048 tokens takes .* and RTX4060 has 8 GB"
    ):
        draft_plan(Recipe(depth=32, gpu="RTX4060"))
    with pytest.raises(ValueError, match=r"micro_batch_size is 64, which takes .* and RTX4090 has 24 GB: \d+ rows fit"):
        draft_plan(Recipe(depth=12, gpu="RTX4090", micro_batch_size=64))
    small = Hardware(device="cuda", dtype="bfloat16", memory_bytes=2 * GIB)
    with pytest.raises(ValueError, match="cuda has 2 GB"):
        make_plan(Recipe(depth=12), small, vocab_size=32768)


def test_divided_weights_fit_where_whole_ones_do_not():
    with pytest.raises(
        ValueError, match=r"depth 28, .* does not fit.* 8xRTX4090 has 24 GB a rank. Use --shard weights, a smaller"
    ):
        draft_plan(Recipe(depth=28, gpu="8xRTX4090"))
    plan = draft_plan(Recipe(depth=28, gpu="8xRTX4090", shard="weights"))
    whole, memory = 4 * sum(plan.parameters.values()), plan.forecast.memory
    assert memory["weights"] == memory["gradients"] == whole // 8
    assert sum(memory.values()) <= parse_machine("RTX4090").memory_bytes
    assert 8 * plan.model.width * plan.model.vocab_size < memory["gathered"] < whole / 2
    with pytest.raises(ValueError, match=r"RTX4090 has 24 GB. Use a smaller --depth"):  # one card has nobody to share with
        draft_plan(Recipe(depth=28, gpu="RTX4090", shard="weights"))


def test_more_ranks_of_the_same_memory_still_fit():
    hardware = Hardware(device="cuda", dtype="bfloat16", memory_bytes=24 * GIB)
    plan = make_plan(Recipe(depth=12), hardware, vocab_size=32768)
    more = for_hardware(plan, replace(hardware, world_size=4))
    assert more.micro_batch_size * more.grad_accum_steps * 4 == plan.micro_batch_size * plan.grad_accum_steps
    assert more.micro_batch_size <= fitting_rows(plan.model, more.hardware)


def test_without_known_memory_nothing_is_limited():
    plan = make_plan(Recipe(depth=12), replace(Hardware(), memory_bytes=0), vocab_size=32768)
    assert plan.micro_batch_size == 32


def test_this_machine_has_memory():
    total = device_memory_bytes(torch.device("cpu"), 1)
    assert total > GIB
    assert device_memory_bytes(torch.device("cpu"), 4) == total // 4


# ---- machines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "cards"),
    [("8xH100", "8xH100", 8), ("h100", "H100", 1), ("RTX 4090", "RTX4090", 1), ("64 x H100", "64xH100", 64)],
)
def test_machines_are_read(text, name, cards):
    machine = parse_machine(text)
    assert (machine.name, machine.cards) == (name, cards)
    assert machine.usd_per_hour == pytest.approx(
        cards * {n.replace(" ", ""): c for n, c in CARDS.items()}[name.split("x", 1)[-1] if cards > 1 else name][2]
    )


@pytest.mark.parametrize("text", ["", "H101", "0xH100", "8", "9999xH100"])
def test_other_machines_are_refused(text):
    with pytest.raises(ValueError, match=r"gpu is .*accepted: one of H100, H100PCIe"):
        parse_machine(text)
