"""The models that one server offers: each stage and kept step of a run, loaded when they are asked for, least recently used out.

An id is the path of the folder: `demo` (today's newest stage, the default), `demo/sft` (its newest step), `demo/sft/step-000189`.
Names that lead to the same folder share one engine.
"""

import asyncio
import gc
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nutshell.serve.errors import APIError
from nutshell.serve.offers import Key, Offer, offers
from nutshell.serve.worker import Worker

if TYPE_CHECKING:
    from nutshell.infer.grammar import JsonGrammars

log = logging.getLogger("nutshell.serve")

MAX_LOADED = 3
FRESH_SECONDS = 1.0
"""After this long the folders are looked through again: a run that trains gets new steps."""


class LoadedModel:
    """An engine with the thread that steps it."""

    def __init__(self, engine: Any, max_queue: int):
        self.worker = Worker(engine, max_queue)
        self.engine, self.tok, self.context = engine, engine.tok, engine.context

    @cached_property
    def json_grammars(self) -> "JsonGrammars":
        """ImportError where `llguidance` is not installed."""
        from nutshell.infer.grammar import JsonGrammars
        from nutshell.infer.request import Vocabulary

        return JsonGrammars(self.tok, Vocabulary.of(self.tok).ends)


class Models:
    """Finds, loads and unloads models, all of it on the event loop."""

    def __init__(self, name: str, *, max_queue: int, folder: str | Path | None = None, max_loaded: int = MAX_LOADED):
        self.name, self.folder, self.max_queue, self.max_loaded = name, folder, max_queue, max_loaded
        self.open_engine: Callable[[Path], Any] | None = None
        self.loaded: OrderedDict[Key, LoadedModel] = OrderedDict()  # least recently used first
        self.started = False
        self.failures: dict[Key, Exception] = {}  # of those that could not be loaded when they were last asked for
        self._loading: dict[Key, asyncio.Task[LoadedModel]] = {}
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="nutshell-load")
        self._one_at_a_time = asyncio.Lock()
        self._offers: list[Offer] = [Offer(name, Path(), created=int(time.time()))]
        self._listed = 0.0

    @property
    def default(self) -> LoadedModel | None:
        return self.loaded.get(self._offers[0].key)

    @property
    def default_failure(self) -> Exception | None:
        return self.failures.get(self._offers[0].key)

    @property
    def in_flight(self) -> int:
        return sum(model.worker.in_flight for model in list(self.loaded.values()))

    def cache_stats(self) -> dict[str, Any]:
        """`Engine.cache_stats` of each model in memory, by its most exact id."""
        ids = {offer.key: offer.id for offer in self._offers}
        return {ids.get(key, str(key[0])): model.engine.cache_stats() for key, model in list(self.loaded.items())}

    def open(self, engine: Any, key: Key = (Path(), "")) -> LoadedModel:
        """Begin to answer with this engine, for this model."""
        model = self.loaded[key] = LoadedModel(engine, self.max_queue)
        self.started = True
        return model

    async def start(self, open_engine: Callable[[Path], Any]) -> None:
        """Load the default model, of a run that has just begun to train as soon as it has saved one. Raises what `open_engine`
        raises."""
        self.open_engine = open_engine
        await self._look()
        if self._begun():
            log.info("%s has no checkpoint yet: answers begin with its first, /runs shows the training until then", self.folder)
        while self._begun():
            await asyncio.sleep(FRESH_SECONDS + 1)
            await self._look()
        await self._load(self._offers[0].key)

    def _begun(self) -> bool:
        """Whether the folder is a run that has steps and no checkpoint."""
        return self.folder is not None and not self._offers[0].digest and (Path(self.folder) / "metrics.jsonl").is_file()

    async def _look(self) -> None:
        if self.folder is not None and time.monotonic() > self._listed + FRESH_SECONDS:
            found = await asyncio.to_thread(offers, self.folder)
            if found or not self.started:  # what is in memory goes on where its folder is gone
                self._offers = found or [Offer(self.name, Path(self.folder))]
            self._listed = time.monotonic()

    async def list(self) -> list[Offer]:
        """What can be asked for now, the default first."""
        await self._look()
        return self._offers

    async def find(self, id: str | None) -> Offer:
        offers = await self.list()
        offer = offers[0] if id is None else next((offer for offer in offers if offer.id == id), None)
        if offer is None:
            there = ", ".join(repr(offer.id) for offer in offers[:20]) + (", ..." if len(offers) > 20 else "")
            message = f"the model {str(id)[:100]!r} does not exist here; this server has {there}"
            raise APIError(404, message, param="model", code="model_not_found")
        return offer

    async def get(self, id: str | None) -> tuple[Offer, LoadedModel]:
        """The model of this id (None: the default), loaded first where it is not. APIError says why it cannot be had."""
        offer = await self.find(id)
        if offer.key not in self.loaded and self.started and not offer.folder.exists():  # a run that trains forgets old steps
            self._listed = 0.0
            offer = await self.find(id)
        model = self.loaded.get(offer.key) or await self.load(offer.key)
        if offer.key in self.loaded:
            self.loaded.move_to_end(offer.key)
        return offer, model

    async def load(self, key: Key) -> LoadedModel:
        task = self._loading.get(key)
        if task is None:
            task = self._loading[key] = asyncio.create_task(self._load(key))
            task.add_done_callback(lambda task: self._loading.pop(key, None))
        try:
            return await asyncio.shield(task)  # a client that leaves does not stop it: others may wait for the same
        except APIError:
            raise
        except Exception as error:
            self.failures[key] = error
            log.exception("the model in %s cannot be loaded", key[0])
            message = "this model cannot be loaded; the server's log says why"
            raise APIError(500, message, type="server_error", param="model", code="model_failed") from error

    async def _load(self, key: Key) -> LoadedModel:
        assert self.open_engine is not None
        async with self._one_at_a_time:  # two loads at once could leave more in memory than there may be
            await asyncio.sleep(0.01)  # those who waited for the model before this one take their slots first
            await self._make_room()
            engine = await asyncio.get_running_loop().run_in_executor(self._loader, self.open_engine, key[0])
            gc.freeze()  # the collector need not look through torch and the models again: it held up everybody for 150 ms
            self.failures.pop(key, None)
            return self.open(engine, key)

    async def _make_room(self) -> None:
        while len(self.loaded) >= self.max_loaded:
            idle = next((key for key, model in self.loaded.items() if not model.worker.in_flight), None)
            if idle is None:
                message = (
                    f"all {len(self.loaded)} loaded models are answering; try again (--max-models says how many there may be)"
                )
                raise APIError(503, message, type="server_error", code="models_busy", retry_after_seconds=2)
            await asyncio.to_thread(self.loaded.pop(idle).worker.stop)
            gc.unfreeze()
            gc.collect()  # engines refer to themselves; their weights should not wait for the collector

    def stop(self) -> None:
        for model in list(self.loaded.values()):
            model.worker.stop()
        self._loader.shutdown(wait=False, cancel_futures=True)
