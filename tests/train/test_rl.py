"""RL: advantages, what carries a gradient, and the policy gradient against a plain float64 computation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nutshell.infer.request import Completion
from nutshell.model.config import ModelConfig
from nutshell.model.gpt import GPT
from nutshell.train.rl import advantages, pack_answers


def completion(ids, mask=None) -> Completion:
    return Completion(ids, mask or [1] * len(ids), "", "stop")


def test_advantages_are_rewards_less_their_groups_mean():
    assert advantages([[1, 0, 0, 0], [1, 1], [0, 0, 0]]) == [[0.75, -0.25, -0.25, -0.25], [0, 0], [0, 0, 0]]


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=9), min_size=1, max_size=5))
def test_advantages_of_a_group_add_up_to_nothing(rewards):
    for group, result in zip(rewards, advantages(rewards), strict=True):
        assert sum(result) == pytest.approx(0, abs=1e-9)
        assert all((a > 0) == (r > sum(group) / len(group)) for a, r in zip(result, group, strict=True))


def test_only_what_the_model_sampled_is_learned():
    """nc 570, 582: the prompt and forced tool output carry no gradient."""
    prompt, answer = [1, 2, 3], completion([10, 11, 20, 21, 12], [1, 1, 0, 0, 1])
    ids, targets, weights = pack_answers([prompt], [[answer, completion([13])]], [[0.5, -0.5]], context=32)
    assert ids.tolist() == [[1, 2, 3, 10, 11, 20, 21], [1, 2, 3, 0, 0, 0, 0]]
    assert targets.tolist() == [[-1, -1, 10, 11, -1, -1, 12], [-1, -1, 13, -1, -1, -1, -1]]
    assert (weights * (targets >= 0)).tolist() == [[0, 0, 0.5, 0.5, 0, 0, 0.5], [0, 0, -0.5, 0, 0, 0, 0]]


def test_answers_without_an_advantage_are_left_out_but_a_batch_is_never_empty():
    prompts, answers = [[1], [2]], [[completion([5]), completion([6])], [completion([7]), completion([8])]]
    ids, targets, _ = pack_answers(prompts, answers, [[0, 0], [0.5, -0.5]], context=8)
    assert (ids.tolist(), targets.tolist()) == ([[2], [2]], [[7], [8]])
    ids, targets, weights = pack_answers(prompts, answers, [[0, 0], [0, 0]], context=8)
    assert ids.shape == (1, 1)
    assert weights.abs().sum() == 0


def test_rows_never_exceed_the_context():
    ids, targets, _ = pack_answers([[1] * 6], [[completion([2] * 6), completion([3])]], [[0.5, -0.5]], context=8)
    assert ids.shape == (2, 8)
    assert (targets >= 0).sum(1).tolist() == [3, 1]


CONFIG = ModelConfig(vocab_size=24, depth=2, width=32, heads=2, kv_heads=2, head_dim=16, context=16)


def test_the_policy_gradient_equals_a_plain_computation_in_float64():
    """sum over sampled tokens of -advantage * log p(token), divided by their number, one answer at a time."""
    torch.manual_seed(3)
    model = GPT(CONFIG)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.normal_(0, 0.3)
    prompts = [[1, 2, 3, 4], [5, 6]]
    answers = [
        [completion([7, 8, 9], [1, 0, 1]), completion([10]), completion([11, 12])],
        [completion([13, 14, 15, 16, 17], [1, 1, 0, 0, 1]), completion([18, 19])],
    ]
    advantage = advantages([[1, 0, 0], [0, 1]])
    model(*pack_answers(prompts, answers, advantage, context=16)).backward()

    plain = GPT(CONFIG).set_precision(torch.float64).double()
    plain.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    total, count = torch.zeros((), dtype=torch.float64), 0
    for prompt, group, weights in zip(prompts, answers, advantage, strict=True):
        for answer, weight in zip(group, weights, strict=True):
            row = prompt + answer.ids
            ids = torch.tensor([row[:-1]])
            logits = plain.hidden_states(ids, plain.rows_context(ids))[0] @ plain.lm_head.weight.T
            logprobs = (15 * torch.tanh(logits / 15)).log_softmax(-1)
            for i, sampled in enumerate(answer.mask):
                if sampled:
                    place = len(prompt) + i
                    total = total - weight * logprobs[place - 1, row[place]]
                    count += 1
    (total / count).backward()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        if theirs.grad is None:
            assert ours.grad is None or ours.grad.abs().max() == 0, name
        else:
            assert torch.allclose(ours.grad.double(), theirs.grad, rtol=1e-3, atol=1e-6), name


def test_a_step_makes_the_rewarded_answer_likelier_and_the_other_less():
    torch.manual_seed(0)
    model = GPT(CONFIG)
    prompt, good, bad = [1, 2, 3], [7, 8], [9, 10]
    batch = pack_answers([prompt], [[completion(good), completion(bad)]], [[0.5, -0.5]], context=16)

    def likelihood(answer):
        row = torch.tensor([prompt + answer])
        targets = torch.tensor([[-1, -1, *answer]])
        return -model(row[:, :-1], targets).item()

    before = likelihood(good), likelihood(bad)
    model(*batch).backward()
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p -= 0.5 * p.grad
    assert likelihood(good) > before[0]
    assert likelihood(bad) < before[1]
