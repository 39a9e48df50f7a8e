"""Bits per byte against a naive float64 computation."""

import math

import pytest
import torch

from nutshell.eval.bpb import bits_per_byte, packed_rows


def naive(model, batches, lengths):
    bits, count = 0.0, 0
    for ids, targets in batches:
        for row_ids, row_targets in zip(ids, targets, strict=True):
            table = model(row_ids.unsqueeze(0))[0].double().log_softmax(-1)
            for position, target in enumerate(row_targets.tolist()):
                if target >= 0 and lengths[target] > 0:
                    bits -= float(table[position, target]) / math.log(2)
                    count += int(lengths[target])
    return bits / count


def make_batches(tok, count=3):
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(count):
        rows = torch.randint(0, tok.vocab_size, (4, 21), generator=generator)
        rows[0, 5] = tok.bos_id  # special tokens have no bytes
        targets = rows[:, 1:].clone()
        targets[torch.rand(targets.shape, generator=generator) < 0.2] = -1
        batches.append((rows[:, :-1], targets))
    return batches


def test_equals_the_naive_computation(model, tok):
    batches, lengths = make_batches(tok), tok.token_byte_lengths()
    assert bits_per_byte(model, batches, lengths) == pytest.approx(naive(model, batches, lengths), rel=1e-5)


def test_packed_documents_score_as_each_alone(model, tok):
    documents = ["the cat is blue? naïve 日本", "dog", "what colour is the cat? " * 3, "green yellow"]
    alone = [torch.tensor([[tok.bos_id, *tok.encode(text)]]) for text in documents]
    assert all(row.size(1) <= 64 for row in alone)
    expected = naive(model, [(row[:, :-1], row[:, 1:]) for row in alone], tok.token_byte_lengths())
    batches = list(packed_rows(documents, tok, 64, rows=1))
    assert sum(int((targets >= 0).sum()) for _, targets in batches) >= sum(row.size(1) - 1 for row in alone)
    assert bits_per_byte(model, batches, tok.token_byte_lengths()) == pytest.approx(expected, rel=1e-5)


def test_counts_bytes_of_raw_tokens(model, tok):
    """nanochat issue 693: a token that is half a character has its own bytes, not those of U+FFFD."""
    ids = tok.encode("日本")
    assert sum(int(tok.token_byte_lengths()[i]) for i in ids) == 6
    row = torch.tensor([[tok.bos_id, *ids]])
    nats = float(model(row[:, :-1], row[:, 1:])) * len(ids)
    got = bits_per_byte(model, [(row[:, :-1], row[:, 1:])], tok.token_byte_lengths())
    assert got == pytest.approx(nats / math.log(2) / 6, rel=1e-5)


def test_ranks_are_added_up(model, tok):
    batches, lengths = make_batches(tok), tok.token_byte_lengths()
    parts = []
    for batch in batches:
        bits_per_byte(model, [batch], lengths, reduce=lambda total: parts.append(total) or total)
    together = bits_per_byte(model, [batches[0]], lengths, reduce=lambda total: sum(parts))
    assert together == pytest.approx(bits_per_byte(model, batches, lengths), rel=1e-9)


def test_no_bytes_is_an_error(model, tok):
    row = torch.full((1, 4), tok.bos_id)
    for targets in (row, torch.full((1, 4), -1)):
        with pytest.raises(ValueError, match="0 bytes"):
            bits_per_byte(model, [(row, targets)], tok.token_byte_lengths())


def test_f11_a_validation_leaves_what_training_needs(tok):
    """A module that keeps what it computed in a validation, as FSDP2 keeps gathered weights, can train afterwards."""

    class Gathering(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(8, tok.vocab_size)
            self.gathered = None

        def forward(self, ids, targets):
            if self.gathered is None:
                self.gathered = torch.ones(8, requires_grad=False) * 2  # made where the first forward runs
            hidden = self.head.weight[ids] * self.gathered
            return torch.nn.functional.cross_entropy(self.head(hidden).flatten(0, 1), targets.flatten(), ignore_index=-1)

    model, batches = Gathering(), make_batches(tok, 1)
    bits_per_byte(model, batches, tok.token_byte_lengths())
    model(*batches[0]).backward()
    assert model.head.weight.grad is not None
