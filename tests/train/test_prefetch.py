"""Batches on their way to the device: the same ones in the same order, sent ahead, and a loader's state that is theirs."""

import threading

import pytest
import torch

from nutshell.data.loader import PretrainLoader
from nutshell.data.shards import open_shards, write_shards
from nutshell.model.flash import document_offsets
from nutshell.train.prefetch import ToDevice

CPU = torch.device("cpu")


@pytest.fixture
def loader(tmp_path):
    write_shards((f"text {i} " * (i % 7 + 1) for i in range(400)), tmp_path, val_fraction=0.1, seed=0)
    made = []

    def encode(texts):
        ids = [list(text.encode()) for text in texts]
        offsets = [0]
        for one in ids:
            offsets.append(offsets[-1] + len(one))
        return [i for one in ids for i in one], offsets

    def make(prepare=None):
        made.append(PretrainLoader(open_shards(tmp_path), encode, 300, 2, 65, seed=0, prepare=prepare))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_on_cpu_nothing_changes(loader):
    plain, moved = loader(), loader(ToDevice(CPU, 300, "blocked"))
    for _ in range(5):
        batch = next(moved)
        ids, targets, offsets = batch.ids, batch.targets, batch.offsets
        expected = next(plain)
        assert torch.equal(ids, expected[0])
        assert torch.equal(targets, expected[1])
        assert offsets is None
        assert moved.state_dict() == plain.state_dict()  # of this batch, though others are on their way
    for a, b in zip(plain.val_batches(128), moved.val_batches(128), strict=True):
        assert torch.equal(a[0], b[0])


def test_a_kernel_by_documents_gets_their_offsets_worked_out_ahead(loader, monkeypatch):
    threads = []
    call = ToDevice.__call__
    monkeypatch.setattr(ToDevice, "__call__", lambda self, batch: threads.append(threading.current_thread()) or call(self, batch))
    moved = loader(ToDevice(CPU, 300, "flash3"))
    batch = next(moved)
    ids, offsets = batch.ids, batch.offsets
    assert torch.equal(offsets, document_offsets((ids == 300).cumsum(1)))
    ends = offsets[:-1][offsets[:-1] < ids.numel()]
    assert (ids.flatten()[ends.long()] == 300).all()  # rows and documents begin with <|bos|>
    assert threads[0] is not threading.main_thread()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_batches_arrive_whole(loader):
    plain, moved = loader(), loader(ToDevice(torch.device("cuda"), 300, "flash3"))
    for _ in range(20):
        batch = next(moved)
        ids, targets, offsets = batch.ids, batch.targets, batch.offsets
        expected = next(plain)
        batch.wait()
        assert ids.is_cuda
        assert torch.equal(ids.cpu(), expected[0])
        assert torch.equal(targets.cpu(), expected[1])
        assert torch.equal(offsets.cpu(), document_offsets((expected[0] == 300).cumsum(1)))
