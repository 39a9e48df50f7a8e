import gc
import itertools
import json
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nutshell.data.loader import ConversationLoader, PretrainLoader
from nutshell.data.shards import open_shards, write_shards

BOS = 300


def encode_batch(texts):
    """Bytes as tokens."""
    encoded = [text.encode() for text in texts]
    offsets = np.cumsum([0] + [len(data) for data in encoded]).astype(np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8).astype(np.uint32), offsets


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    documents = [f"{number} is a number, " * (1 + number * 7 % 11) for number in range(120)]
    folder = write_shards(
        documents, tmp_path_factory.mktemp("data") / "shards", rows_per_group=10, shard_characters=4000, val_fraction=0.1
    )
    return open_shards(folder)


def loader(shards, rows=3, row_tokens=33, **options):
    return PretrainLoader(shards, encode_batch, BOS, rows, row_tokens, **options)


def take(batches, count):
    return [(inputs.clone(), targets.clone()) for inputs, targets in itertools.islice(batches, count)]


def same(one, two):
    return len(one) == len(two) and all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(one, two, strict=True)
    )


@pytest.fixture(autouse=True)
def _no_threads_left():
    yield
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("nutshell-data")]


def test_batches(shards):
    with loader(shards) as batches:
        for inputs, targets in take(batches, 20):
            assert inputs.shape == targets.shape == (3, 32)
            assert inputs.dtype == targets.dtype == torch.int64
            assert inputs.is_contiguous()
            assert targets.is_contiguous()
            assert (inputs[:, 0] == BOS).all()
            assert torch.equal(inputs[:, 1:], targets[:, :-1])
        assert "train-0" in batches.sources[0]
        assert "row group" in batches.sources[0]


def test_an_epoch_has_every_token_once(shards):
    texts = [text for block in range(shards.blocks("train")) for text in shards.read("train", block)]
    expected = Counter("".join(texts).encode())
    with loader(shards, rows=1) as batches:
        found = Counter()
        for inputs, targets in batches:
            if batches.state_dict()["epoch"] == 1:
                break
            found.update(inputs[0].tolist() + targets[0, -1:].tolist())
    del found[BOS]
    # All but the carry (less than a row), which the next epoch begins with.
    assert not found - expected
    assert sum((expected - found).values()) < 33


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 25), min_size=1, max_size=3), st.integers(1, 4), st.integers(2, 70), st.integers(0, 5))
def test_resuming_is_bit_exact_wherever_it_was_interrupted(shards, stops, rows, row_tokens, seed):
    with loader(shards, rows, row_tokens, seed=seed) as batches:
        expected = take(batches, sum(stops) + 5)
    state, found = None, []
    for stop in [*stops, 5]:
        with loader(shards, rows, row_tokens, seed=seed) as batches:
            if state is not None:
                batches.load_state_dict(json.loads(json.dumps(state)))
            found += take(batches, stop)
            state = batches.state_dict()
    assert same(expected, found)


def test_close_and_go_on_in_the_same_object(shards):
    with loader(shards) as batches:
        expected = take(batches, 8)
    with loader(shards) as batches:
        first = take(batches, 3)
        batches.close()
        assert same(expected, first + take(batches, 5))


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_ranks_share_the_rows_of_one_stream(shards, world_size):
    with loader(shards, rows=6) as batches:
        expected = take(batches, 6)
        state = batches.state_dict()
        after = take(batches, 2)
    ranks = [loader(shards, rows=6 // world_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    for inputs, _ in expected:
        parts = [next(batches)[0] for batches in ranks]
        for rank, part in enumerate(parts):
            assert torch.equal(part, inputs[rank::world_size])
    assert all(batches.state_dict() == state for batches in ranks)
    for rank, batches in enumerate(ranks):  # a run of one rank goes on with several
        batches.load_state_dict(state)
        assert torch.equal(next(batches)[0], after[0][0][rank::world_size])
        batches.close()


def test_epochs_differ_and_so_do_seeds(shards):
    with loader(shards, rows=1) as batches:
        first = []
        while batches.state_dict()["epoch"] == 0:
            first += take(batches, 1)
        assert 0.9 < batches.epoch < 1.3
        second = take(batches, len(first))
    assert not same(first, second)
    with loader(shards, rows=1, seed=1) as batches:
        assert not same(first[:3], take(batches, 3))


def test_a_tiny_corpus_trains_for_three_epochs_without_hanging(tmp_path):
    # nanochat 360 and 620
    tiny = open_shards(write_shards(["a tiny text of two", "documents, no more"], tmp_path / "shards"))
    with loader(tiny, rows=8, row_tokens=10) as batches:
        while batches.epoch < 3:
            assert next(batches)[0].shape == (8, 9)


def test_a_corpus_below_one_row_is_refused(tmp_path):
    tiny = open_shards(write_shards(["a tiny text of two", "documents, no more"], tmp_path / "shards"))
    with loader(tiny, row_tokens=65) as batches:
        for _ in range(2):
            with pytest.raises(ValueError, match="has 19 tokens, less than one row of 65"):
                next(batches)


def test_errors_of_the_thread_reach_the_consumer(shards):
    def failing(texts):
        raise RuntimeError("the tokenizer failed")

    with PretrainLoader(shards, failing, BOS, 1, 9) as batches:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="the tokenizer failed"):
                next(batches)


def test_a_damaged_shard_stops_or_is_skipped(tmp_path):
    texts = [f"{number} " * 50 for number in range(60)]
    folder = write_shards(texts, tmp_path / "shards", rows_per_group=5, val_fraction=0.1)
    path = folder / "train-00000.parquet"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with loader(open_shards(folder)) as batches, pytest.raises(ValueError, match=r"train-00000\.parquet, row group \d"):
        take(batches, 1000)
    skipping = open_shards(folder, on_error="skip")
    with loader(skipping) as batches:
        while batches.epoch < 2:
            next(batches)
    assert len(skipping.problems) == 1


@pytest.mark.parametrize("change", [{"seed": 1}, {"row_tokens": 34}])
def test_a_state_of_other_settings_is_refused(shards, change, tmp_path):
    state = loader(shards).state_dict()
    with pytest.raises(ValueError, match=f"cannot be resumed: {next(iter(change))} was"):
        loader(shards, **change).load_state_dict(state)
    with pytest.raises(ValueError, match="data was"):
        loader(open_shards(write_shards(["other text"] * 2 + ["and more"], tmp_path / "other"))).load_state_dict(state)


def test_validation_batches_are_finite_and_always_the_same(shards):
    batches = loader(shards, rows=4)
    everything = batches.val_batches()
    assert same(everything, loader(shards, rows=4, seed=9).val_batches())
    texts = [text for block in range(shards.blocks("val")) for text in shards.read("val", block)]
    targets = torch.cat([targets for _, targets in everything]).flatten()
    found = Counter(targets[(targets >= 0) & (targets != BOS)].tolist())
    assert not found - Counter("".join(texts).encode())
    missing = sum((Counter("".join(texts).encode()) - found).values())
    assert missing == 0  # the first token of each row is BOS, so every text token is a target
    few = batches.val_batches(32 * 4)
    assert len(few) == 1
    assert same(few, loader(shards, rows=4, seed=9).val_batches(32 * 4))
    by_rank = [loader(shards, rows=2, rank=rank, world_size=2).val_batches() for rank in range(2)]
    assert len(by_rank[0]) == len(by_rank[1]) == len(everything)
    assert torch.equal(by_rank[1][0][0], everything[0][0][1::2])


def test_validation_text_shorter_than_a_row(shards):
    ((inputs, targets),) = loader(shards, rows=2, row_tokens=100_001).val_batches()
    assert inputs.shape == (2, 100_000)
    assert (targets[0] >= 0).sum() > 100
    assert (targets[1] == -1).all()


# ---- conversations -------------------------------------------------------------------------------------------------

USER, ASSISTANT = 301, 302


def render(conversation):
    ids, mask = [BOS], [0]
    for message in conversation["messages"]:
        learned = message["role"] == "assistant"
        tokens = [ASSISTANT if learned else USER, *message["content"].encode()]
        ids += tokens
        mask += [0] + [int(learned)] * (len(tokens) - 1)
    return ids, mask


def conversation(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


CONVERSATIONS = [conversation(f"q{number}" * (number % 9), f"answer {number}") for number in range(90)]


def chat_loader(conversations=CONVERSATIONS, rows=2, row_tokens=41, **options):
    return ConversationLoader(conversations, render, BOS, rows, row_tokens, **options)


def test_only_assistant_tokens_are_targets():
    # nanochat 570 and 582: the first answered token is learned too, and nothing of the user's.
    with chat_loader(CONVERSATIONS[1:2], rows=1) as batches:
        ((inputs, targets),) = take(batches, 1)
    ids, mask = render(CONVERSATIONS[1])
    assert inputs[0, : len(ids)].tolist() == ids
    expected = [token if learned else -1 for token, learned in zip(ids[1:], mask[1:], strict=True)]
    assert targets[0].tolist() == expected + [-1] * (40 - len(expected))
    assert bytes(targets[targets >= 0].tolist()) == b"answer 1"


def test_an_epoch_has_every_conversation_once(monkeypatch):
    monkeypatch.setattr("nutshell.data.loader.CONVERSATIONS_PER_BLOCK", 16)
    expected = Counter("".join(c["messages"][1]["content"] for c in CONVERSATIONS).encode())
    with chat_loader(rows=1) as batches:
        epoch = list(itertools.takewhile(lambda _: batches.state_dict()["epoch"] == 0, batches))
    filled = sum(len(render(c)[0]) for c in CONVERSATIONS)
    assert filled / (41 * len(epoch)) > 0.7  # little padding
    targets = torch.cat([targets for _, targets in epoch]).flatten()
    assert Counter(targets[targets >= 0].tolist()) == expected
    assert all((targets >= 0).any() for _, targets in epoch)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=3), st.integers(1, 4), st.integers(16, 50))
def test_resuming_conversations_is_bit_exact(stops, rows, row_tokens):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nutshell.data.loader.CONVERSATIONS_PER_BLOCK", 16)
        with chat_loader(rows=rows, row_tokens=row_tokens) as batches:
            expected = take(batches, sum(stops) + 5)
        state, found = None, []
        for stop in [*stops, 5]:
            with chat_loader(rows=rows, row_tokens=row_tokens) as batches:
                if state is not None:
                    batches.load_state_dict(json.loads(json.dumps(state)))
                found += take(batches, stop)
                state = batches.state_dict()
        assert same(expected, found)


def test_conversations_that_are_all_too_long_still_go_on():
    # nanochat 590 and 817: such rows had no target, the loss was NaN and the cursor stood still.
    long = [conversation("short", "a very long answer " * 20), conversation("a long question " * 20, "answer")]
    with chat_loader(long, rows=4) as batches:
        for _, targets in take(batches, 6):
            assert (targets >= 0).any(dim=1).all()
        assert batches.epoch > 3


def test_f2_what_does_not_fit_is_counted_and_each_is_rendered_once():
    """F2: 41.8% of the tokens were lost, and the only counter said 0."""
    seen = []
    long = [conversation("short", "a very long answer " * 20), conversation("a long question " * 20, "answer"), CONVERSATIONS[0]]
    batches = ConversationLoader(long, lambda c: seen.append(c) or render(c), BOS, 1, 40)
    cropped = [len(render(c)[0]) - 40 for c in long[:2]]
    expected = {"cropped_conversations": 2, "cropped_tokens": sum(cropped), "left_out_conversations": 1}
    assert batches.losses() == expected
    with batches:
        take(batches, 9)
        assert batches.epoch > 2
    assert len(seen) == 3
    assert chat_loader().losses() == {}


def test_no_learnable_conversation_is_refused():
    long = [conversation("a long question " * 20, "answer")] * 3
    with chat_loader(long) as batches, pytest.raises(ValueError, match="none of the 3 conversations has a token to learn"):
        next(batches)
    with pytest.raises(ValueError, match="no conversation to train on"):
        chat_loader([])


def test_other_conversations_are_refused_at_resume():
    state = chat_loader().state_dict()
    with pytest.raises(ValueError, match="data was"):
        chat_loader([*CONVERSATIONS[:-1], conversation("new", "one")]).load_state_dict(state)
