"""The two sources of training batches: documents from shards, and conversations.

Both yield `(inputs, targets)` of shape (rows, T) for ever; stream.py describes their order and state. Tokenizing and rendering
are callables, so this file knows neither the tokenizer nor the chat format.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nutshell.data.mixed import MixedShards
from nutshell.data.packing import Document, Packed, pack
from nutshell.data.shards import Shards
from nutshell.data.stream import Batch, PackedStream

CONVERSATIONS_PER_BLOCK = 1024


class PretrainLoader(PackedStream):
    """Endless batches of packed documents from shards; every token is learned and none is cropped.

    `encode_batch(texts)` returns `(flat ids, offsets (N + 1))` without BOS, which is added here. `options` are those of
    `PackedStream`. `next()` raises ValueError if the whole split is shorter than a row, and whatever reading or encoding raises.
    """

    def __init__(
        self, shards: Shards | MixedShards, encode_batch: Callable[[list[str]], tuple[np.ndarray, np.ndarray]], bos_id: int,
        rows: int, row_tokens: int, **options: Any,
    ):  # fmt: skip
        super().__init__(bos_id, rows, row_tokens, **options)
        self.shards, self.encode_batch = shards, encode_batch

    def val_batches(self, max_tokens: int | None = None) -> list[Batch]:
        """Batches for validation, the same at every call: about `max_tokens` targets over all ranks, at least one row.

        Blocks and rows come in a fixed random order, so that even a few are spread over the whole split.
        """
        if self.shards.blocks("val") == 0:
            raise ValueError(f"{self.shards.folder} has no val-*.parquet; prepare the data again (nutshell data)")
        wanted = None if max_tokens is None else max(1, max_tokens // (self.row_tokens - 1))
        order = np.random.default_rng(0).permutation(self.shards.blocks("val")).tolist()
        parts: list[Packed] = []
        for block in order:
            documents, carry = self._encode(self.shards.read("val", block)), parts[-1].carry if parts else []
            parts.append(pack(documents, self.row_tokens, carry, bos_id=self.bos_id, flush=block == order[-1]))
            if wanted is not None and sum(len(part.ids) for part in parts) >= wanted:
                break
        return self._fixed_batches(np.concatenate([p.ids for p in parts]), np.concatenate([p.mask for p in parts]), wanted)

    def _encode(self, texts: list[str]) -> list[Document]:
        if not texts:
            return []
        flat, offsets = self.encode_batch(texts)
        offsets = np.asarray(offsets, np.int64)
        ids = np.insert(np.asarray(flat, np.uint32), offsets[:-1], self.bos_id)
        mask, starts = np.ones(len(ids), bool), (offsets + np.arange(len(offsets))).tolist()
        return [(ids[start:end], mask[start:end]) for start, end in itertools.pairwise(starts)]

    def _blocks(self) -> int:
        return self.shards.blocks("train")

    def _block_name(self, block: int) -> str:
        return self.shards.block_name("train", block)

    def _documents(self, block: int, epoch: int) -> list[Document]:
        return self._encode(self.shards.read("train", block))

    def _fingerprint(self) -> str:
        return self.shards.fingerprint("train")

    def _check_epoch(self, tokens: int) -> None:
        if tokens < self.row_tokens:
            raise ValueError(
                f"the train part of {self.shards.folder} has {tokens} tokens, less than one row of {self.row_tokens}; "
                "give more text or a shorter context"
            )


class ConversationLoader(PackedStream):
    """Endless batches of whole conversations, shuffled anew each epoch, for midtraining and fine-tuning.

    `render(conversation)` returns `(ids, mask)`: ids start with BOS, mask is 1 where the model learns to produce the token.
    `options` are those of `PackedStream`. A conversation longer than a row is cut at its end. If no learned token is left, it is
    dropped, so that every row has a target. `next()` raises ValueError if none remains.
    """

    _split_documents = False

    def __init__(
        self, conversations: Sequence[Any], render: Callable[[Any], tuple[Sequence[int], Sequence[int]]], bos_id: int, rows: int,
        row_tokens: int, **options: Any,
    ):  # fmt: skip
        super().__init__(bos_id, rows, row_tokens, **options)
        if len(conversations) == 0:
            raise ValueError("there is no conversation to train on")
        self.conversations, self.render = conversations, render
        self._rendered: list[Document | None] = [None] * len(conversations)
        self._hash = ""

    def losses(self) -> dict[str, int]:
        """Counts of what does not fit, for the log; empty if everything does. Renders all conversations."""
        documents = [self._document(index) for index in range(len(self.conversations))]
        beyond = [len(ids) - self.row_tokens for ids, _ in documents if len(ids) > self.row_tokens]
        left_out = sum(not self._is_learned(document) for document in documents)
        if not beyond and not left_out:
            return {}
        return {"cropped_conversations": len(beyond), "cropped_tokens": sum(beyond), "left_out_conversations": left_out}

    def val_batches(self, held_out: Sequence[Any], max_tokens: int) -> list[Batch]:
        """Batches of held-out conversations, the same at every call: about `max_tokens` over all ranks."""
        documents: list[Document] = []
        tokens = 0
        for index in np.random.default_rng(0).permutation(len(held_out)).tolist():
            if tokens < max_tokens:
                ids, mask = self.render(held_out[index])
                documents.append((np.asarray(ids, np.uint32), np.asarray(mask, bool)))
                tokens += len(ids)
        packed = pack(filter(self._is_learned, documents), self.row_tokens, split=False, bos_id=self.bos_id, flush=True)
        return self._fixed_batches(packed.ids, packed.mask, max(1, max_tokens // (self.row_tokens - 1)))

    def _blocks(self) -> int:
        return -(-len(self.conversations) // CONVERSATIONS_PER_BLOCK)

    def _block_name(self, block: int) -> str:
        return f"conversations, block {block} of {self._blocks()}"

    def _documents(self, block: int, epoch: int) -> list[Document]:
        order = self._shuffled("conversations", len(self.conversations), epoch)
        chosen = order[block * CONVERSATIONS_PER_BLOCK : (block + 1) * CONVERSATIONS_PER_BLOCK].tolist()
        return [document for document in map(self._document, chosen) if self._is_learned(document)]

    def _document(self, index: int) -> Document:
        """The ids and mask of a conversation, rendered once and kept for later epochs."""
        found = self._rendered[index]
        if found is None:
            ids, mask = self.render(self.conversations[index])
            found = self._rendered[index] = np.asarray(ids, np.uint32), np.asarray(mask, bool)
        return found

    def _is_learned(self, document: Document) -> bool:
        """Whether any token in the part that fits a row is learned."""
        return bool(document[1][1 : self.row_tokens].any())

    def _fingerprint(self) -> str:
        if not self._hash:
            digest = hashlib.sha256()
            for conversation in self.conversations:
                digest.update(json.dumps(conversation, sort_keys=True).encode())
            self._hash = digest.hexdigest()[:16]
        return self._hash

    def _check_epoch(self, tokens: int) -> None:
        if not tokens:
            raise ValueError(
                f"none of the {len(self.conversations)} conversations has a token to learn within a row of {self.row_tokens} "
                "tokens: they have no assistant message, or their first user message alone is longer than the context"
            )
