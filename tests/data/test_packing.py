import itertools
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nutshell.data.packing import pack

BOS = 9


def document(length: int, number: int, masked: bool = False):
    """A document whose tokens after BOS are all different from those of any other document."""
    ids = np.arange(length, dtype=np.uint32) + 1000 * (number + 1)
    ids[0] = BOS
    return ids, (np.arange(length) % 3 > 0) | (not masked)


lengths = st.lists(st.integers(1, 40), max_size=40)


@settings(deadline=None)
@given(lengths, lengths, st.integers(2, 17), st.booleans())
def test_splitting_neither_loses_nor_doubles_a_token(first, second, row_tokens, masked):
    documents = [document(length, number, masked) for number, length in enumerate(first + second)]
    before = [(ids.copy(), mask.copy()) for ids, mask in documents]
    one = pack(documents[: len(first)], row_tokens, bos_id=BOS)
    two = pack(documents[len(first) :], row_tokens, one.carry, bos_id=BOS)
    rows = np.concatenate([one.ids, two.ids])
    assert rows.dtype == np.uint32
    assert (rows[:, 0] == BOS).all()
    assert masked or np.concatenate([one.mask, two.mask]).all()  # no padding
    assert sum(len(ids) for ids, _ in two.carry) < row_tokens
    assert all(ids[0] == BOS for ids, _ in two.carry)
    found = Counter(np.concatenate([rows.ravel(), *(ids for ids, _ in two.carry)]).tolist())
    expected = Counter(token for ids, _ in documents for token in ids.tolist())
    inserted = found - expected
    assert set(inserted) <= {BOS}
    assert found - inserted == expected
    # The pieces of each document follow one another in order, each after a BOS.
    for ids, _ in documents:
        tokens = [t for t in rows.ravel().tolist() if t // 1000 == ids[-1] // 1000 and t != BOS]
        assert tokens == sorted(tokens)
    for (ids, mask), (ids_before, mask_before) in zip(documents, before, strict=True):
        assert (ids == ids_before).all()  # the input is not written to
        assert (mask == mask_before).all()
    if masked and len(rows):
        mask_of = {t: m for ids, mask in documents for t, m in zip(ids.tolist(), mask.tolist(), strict=True) if t != BOS}
        learned = zip(rows.ravel().tolist(), np.concatenate([one.mask, two.mask]).ravel().tolist(), strict=True)
        assert all(mask == mask_of[token] for token, mask in learned if token != BOS)


@settings(deadline=None)
@given(lengths, st.integers(2, 17), st.booleans())
def test_whole_documents_stay_whole(many, row_tokens, flush):
    documents = [document(length, number, masked=True) for number, length in enumerate(many)]
    packed = pack(documents, row_tokens, split=False, bos_id=BOS, flush=flush)
    if flush:
        assert not packed.carry
    assert sum(len(ids) for ids, _ in packed.carry) < row_tokens
    kept = [(ids[:row_tokens], mask[:row_tokens]) for ids, mask in documents]
    expected = Counter((tuple(ids.tolist()), tuple(mask.tolist())) for ids, mask in kept)
    found = Counter((tuple(ids.tolist()), tuple(mask.tolist())) for ids, mask in packed.carry)
    for ids, mask in zip(packed.ids.tolist(), packed.mask.tolist(), strict=True):
        starts = [position for position, token in enumerate(ids) if token == BOS] + [row_tokens]
        assert starts[0] == 0
        for start, end in itertools.pairwise(starts):
            piece = (tuple(ids[start:end]), tuple(mask[start:end]))
            if piece in expected and found[piece] < expected[piece]:
                found[piece] += 1
            else:
                assert piece == ((BOS,), (False,))
    assert found == expected


def test_best_fit():
    documents = [document(length, number) for number, length in enumerate([6, 3, 5, 2, 4])]
    packed = pack(documents, 10, bos_id=BOS)
    assert [np.flatnonzero(row == BOS).tolist() for row in packed.ids] == [[0, 6], [0, 5, 8]]


def test_flush_pads_the_last_row_only():
    packed = pack([document(25, 0)], 10, bos_id=BOS, flush=True)
    assert packed.ids.shape == (3, 10)
    assert (~packed.mask).sum() == 3  # 25 tokens and 2 inserted BOS in 30
    assert (packed.ids[2, -3:] == BOS).all()


def test_a_document_of_a_book_is_not_quadratic():
    ids = np.ones(4_000_000, np.uint32)
    ids[0] = BOS
    start = time.perf_counter()
    packed = pack([(ids, np.ones(len(ids), bool))], 65, bos_id=BOS)
    assert time.perf_counter() - start < 5
    assert len(packed.ids) == (4_000_000 - 1) // 64


def test_bad_input():
    with pytest.raises(ValueError, match=r"starts with token 3 instead of BOS \(9\)"):
        pack([(np.array([3, 4], np.uint32), np.ones(2, bool))], 4, bos_id=BOS)
    assert pack([], 4, bos_id=BOS).ids.shape == (0, 4)
