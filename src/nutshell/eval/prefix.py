"""Reading on from a shared beginning: many rows attend to the keys and values of one prefix, which is read once and not copied.

Legend: G prefixes, N rows behind each, T tokens of a row, S tokens of a prefix, H query heads, K key/value heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from nutshell.model.attention import AttentionContext
from nutshell.model.decoder import Decoder

NOWHERE = 1 << 40
"""Position of padding: behind every token, so that none sees it."""


@dataclass(kw_only=True)
class Prefix:
    """What has been read, one row for each prefix."""

    positions: Tensor
    """(G, S) of each key; NOWHERE for padding."""
    documents: Tensor
    """(G, S) number of the document that each key belongs to: a token sees its own only."""
    counts: Tensor
    """(G,) real tokens."""
    last: Tensor
    """(G,) the last token, which the next one is smeared with."""
    keys: list[Tensor] = field(default_factory=list)
    """(G, S, K, D) of each layer."""
    values: list[Tensor] = field(default_factory=list)

    def rows(self, index: list[int]) -> Prefix:
        """The prefixes of these rows."""
        if index == list(range(self.last.numel())):
            return self
        at = torch.tensor(index, device=self.last.device)
        keys, values = [k[at] for k in self.keys], [v[at] for v in self.values]
        return Prefix(
            positions=self.positions[at], documents=self.documents[at], counts=self.counts[at], last=self.last[at],
            keys=keys, values=values,
        )  # fmt: skip

    def followed_by(self, own: Prefix) -> Prefix:
        """Each of `own`'s G * N rows with the prefix that it follows in front."""
        n = own.last.numel() // self.last.numel()

        def joined(before: Tensor, after: Tensor) -> Tensor:
            return torch.cat([before.repeat_interleave(n, dim=0), after], dim=1)

        return Prefix(
            positions=joined(self.positions, own.positions), documents=joined(self.documents, own.documents),
            counts=self.counts.repeat_interleave(n) + own.counts, last=own.last,
            keys=[joined(*pair) for pair in zip(self.keys, own.keys, strict=True)],
            values=[joined(*pair) for pair in zip(self.values, own.values, strict=True)],
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Recording(AttentionContext):
    """Attention of rows, which keeps their keys and values in `own` and looks at those of `before`, where there is one."""

    own: Prefix
    keep: bool
    before: Prefix | None = None

    def attend(self, layer: int, window: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.keep:
            self.own.keys.append(k)
            self.own.values.append(v)
        if self.before is None:
            return super().attend(layer, window, q, k, v)
        return attend_after(self.before, self.own, window, layer, q, k, v)


def attend_after(before: Prefix, own: Prefix, window: int, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of q (G N, T, H, D) over the prefixes' keys and the rows' own k, v (G N, T, K, D): (G N, T, H, D).

    Scores over both are one softmax. All rows behind a prefix are one block of queries against it.
    """
    rows, T, H, D = q.shape
    G, K = before.last.numel(), k.size(2)
    N, R = rows // G, H // K  # rows of a prefix, query heads of a key head
    S = before.positions.size(1)
    keys, values = (x.permute(0, 2, 1, 3) for x in (before.keys[layer], before.values[layer]))  # (G, K, S, D)
    k, v = (x.transpose(1, 2) for x in (k, v))  # (G N, K, T, D)
    q = (q * D**-0.5).view(rows, T, K, R, D).permute(0, 2, 3, 1, 4)  # (G N, K, R, T, D)
    by_prefix = q.reshape(G, N, K, R * T, D).transpose(1, 2).reshape(G, K, N * R * T, D)
    past = (by_prefix @ keys.transpose(2, 3)).view(G, K, N, R * T, S).transpose(1, 2).reshape(rows, K, R, T, S)
    here = (q.reshape(rows, K, R * T, D) @ k.transpose(2, 3)).view(rows, K, R, T, T)
    seen_past = visible(own, before.positions.repeat_interleave(N, 0), before.documents.repeat_interleave(N, 0), window)
    seen_here = visible(own, own.positions, own.documents, window)
    seen = torch.cat([seen_past, seen_here], dim=2)[:, None, None]  # (G N, 1, 1, T, S + T)
    weights = torch.cat([past, here], dim=-1).masked_fill_(~seen, float("-inf")).softmax(dim=-1)
    past, here = weights.split([S, T], dim=-1)
    past = past.reshape(G, N, K, R * T, S).transpose(1, 2).reshape(G, K, N * R * T, S)
    y = (past @ values).view(G, K, N, R * T, D).transpose(1, 2).reshape(rows, K, R * T, D)
    y = y + here.reshape(rows, K, R * T, T) @ v
    return y.view(rows, K, R, T, D).permute(0, 3, 1, 2, 4).reshape(rows, T, H, D)


def visible(own: Prefix, positions: Tensor, documents: Tensor, window: int) -> Tensor:
    """(rows, T, keys): which keys at `positions` (rows, keys) each token of `own` may see. Padding sees itself, so that no
    softmax is empty."""
    query = own.positions.unsqueeze(2)  # (rows, T, 1)
    distance = query - positions.unsqueeze(1)
    return (distance >= 0) & (distance < window) & (own.documents.unsqueeze(2) == documents.unsqueeze(1))


def read(model: Decoder, ids: Tensor, counts: Tensor, before: Prefix | None, *, keep: bool) -> tuple[Tensor, Prefix]:
    """Hidden states (rows, T, C) of ids (rows, T), of which the first `counts` (rows,) of each row are real, and what was read.

    Behind the G prefixes `before` stand rows / G rows each, in order. With `keep`, what was read can be read on from.
    """
    rows, T = ids.shape
    places = torch.arange(T, device=ids.device)
    start = counts.new_zeros(rows)
    opened = (ids == model.config.bos_id).cumsum(1)
    if before is not None:
        n = rows // before.last.numel()
        start = before.counts.repeat_interleave(n)
        opened = opened + before.documents.max(1).values.repeat_interleave(n).unsqueeze(1)
    positions = start.unsqueeze(1) + places
    padding = places >= counts.unsqueeze(1)
    own = Prefix(
        positions=positions.masked_fill(padding, NOWHERE), documents=opened.masked_fill(padding, -1), counts=counts,
        last=ids.gather(1, (counts - 1).unsqueeze(1)).squeeze(1),
    )  # fmt: skip
    if before is None:
        whole = model.rows_context(ids)
        ctx = Recording(positions=places, cos=whole.cos, sin=whole.sin, masks=whole.masks, own=own, keep=keep)
        return model.hidden_states(ids, ctx), own
    at = positions.clamp(max=model.config.context - 1)
    cos, sin = (table[at].to(model.compute_dtype) for table in (model.cos, model.sin))  # (rows, T, 1, D)
    ctx = Recording(positions=at, cos=cos, sin=sin, own=own, keep=keep, before=before)
    hidden = model.hidden_states(ids, ctx, before.last.repeat_interleave(n))
    return hidden, before.followed_by(own) if keep else own
