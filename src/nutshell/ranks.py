"""How the ranks of a training find each other, and wait for each other without a time limit."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""For the collectives of a step, so that one that hangs ends. Ranks that wait for another one's work wait in a `Meeting`."""
HEARTBEAT_SECONDS = 5.0
SILENCE_SECONDS = 120.0
"""A rank without a heartbeat for this long counts as dead. It is long, since a busy interpreter delays heartbeats."""
RANK_DEFAULTS = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
RANK_VARIABLES = (*RANK_DEFAULTS, "MASTER_ADDR", "MASTER_PORT")


class Meeting:
    """Where ranks wait for each other without a time limit, and still notice one that died.

    A collective has a timeout, so rank 0 could not prepare data for longer than that. Here a waiting rank polls a store, and a
    thread of each rank counts up its heartbeat there. All ranks make the same calls in the same order.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int):
        self.store, self.rank, self.world_size = store, rank, world_size
        self._calls = 0
        self._ended = threading.Event()
        self._heard = dict.fromkeys(range(world_size), (-1, time.monotonic()))
        threading.Thread(target=self._beat, name="nutshell-heartbeat", daemon=True).start()

    def agree(self, value: T) -> T:
        key = self._next("value")
        if self.rank == 0:
            self.store.set(key, json.dumps(value))
        else:
            self._wait(lambda: self.store.check([key]))
        return json.loads(self.store.get(key))

    def barrier(self) -> None:
        key = self._next("barrier")
        self.store.add(key, 1)
        self._wait(lambda: self.store.add(key, 0) >= self.world_size)

    def close(self) -> None:
        self._ended.set()

    def _next(self, kind: str) -> str:
        self._calls += 1
        return f"nutshell/{kind}/{self._calls}"

    def _wait(self, done: Callable[[], bool]) -> None:
        pause, looked = 0.001, time.monotonic()
        try:
            while not done():
                time.sleep(pause)
                pause = min(0.2, pause * 1.5)
                if time.monotonic() - looked > HEARTBEAT_SECONDS:
                    looked = time.monotonic()
                    self._check_others(looked)
        except RuntimeError as error:  # of the store, which lives with the launcher or with rank 0
            lost = f"rank {self.rank} has lost the store that the ranks share. Start all again; what was saved is whole."
            raise ConnectionError(lost) from error

    def _check_others(self, now: float) -> None:
        """ConnectionError where a rank has been silent for too long, by this rank's own clock."""
        for rank, (beats, since) in self._heard.items():
            found = self.store.add(f"nutshell/beats/{rank}", 0)
            self._heard[rank] = (found, now) if found != beats else (beats, since)
            if now - self._heard[rank][1] > SILENCE_SECONDS:
                raise ConnectionError(
                    f"rank {rank} of {self.world_size} has not been heard of for {SILENCE_SECONDS:.0f} s: it is dead or out of "
                    "reach. Start all ranks again; what was saved is whole."
                )

    def _beat(self) -> None:
        with contextlib.suppress(RuntimeError):  # the store is gone: the wait of the main thread tells
            while not self._ended.wait(HEARTBEAT_SECONDS):
                self.store.add(f"nutshell/beats/{self.rank}", 1)


def join_ranks(rank: int, world_size: int, backend: str) -> Meeting:
    """Join the process group that RANK and WORLD_SIZE ask for; after 5 seconds says whom it waits for.

    ValueError where the environment does not say where the others are.
    """
    way_out = f"To train with one process: unset {' '.join(name for name in RANK_VARIABLES if name in os.environ)}"
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing or not 0 <= rank < world_size:
        problem = f"{', '.join(missing)} missing" if missing else f"RANK is {rank}; accepted: 0 to {world_size - 1}"
        raise ValueError(f"WORLD_SIZE={world_size} asks for several ranks, but {problem}. Start with torchrun. {way_out}")
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    text = f"rank {rank} waits for the other ranks of {world_size} at {where} (RANK and WORLD_SIZE are set). {way_out}"
    tell = threading.Timer(5.0, lambda: print(text, file=sys.stderr, flush=True))
    tell.daemon = True
    tell.start()
    try:
        store, _, _ = next(iter(rendezvous("env://", timeout=COLLECTIVE_TIMEOUT)))
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=COLLECTIVE_TIMEOUT)
    except (RuntimeError, ValueError) as error:  # of torch, with its own stack in the text
        first = (str(error).splitlines() or [""])[0]
        raise ConnectionError(f"rank {rank} of {world_size} found no others at {where}: {first}. {way_out}") from error
    finally:
        tell.cancel()
    return Meeting(dist.PrefixStore("meeting", store), rank, world_size)


def torchrun_ranks() -> tuple[int, int, int]:
    """Rank, number of ranks, and rank on this machine, as torchrun sets them."""
    rank, world, local = (rank_variable(name, default) for name, default in RANK_DEFAULTS.items())
    return (rank, world, local) if world > 1 else (0, 1, 0)  # some schedulers set RANK where there are no others


def rank_variable(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdecimal():
        raise ValueError(f"{name} in the environment is {value!r}; accepted: a number. To train with one process: unset {name}")
    return int(value)
