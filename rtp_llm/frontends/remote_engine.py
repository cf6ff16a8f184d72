"""An engine that is in another process, as the server knows it."""

import asyncio
import time

from rtp_llm.core import ModelInfo, Request, Response
from rtp_llm.engine.lane import Lane, lane_of
from rtp_llm.engine.lookups import Lookups
from rtp_llm.engine.tokenizer_pool import Tokenized, TokenizerPool
from rtp_llm.errors import NotReady
from rtp_llm.frontends.link import Link
from rtp_llm.observability import Waiting


class ForwardedMetrics:
    """A model's RequestMetrics, which the engine's process keeps."""

    def __init__(self, model: int, name: str, link: Link) -> None:
        self.model_name = name
        self._model = model
        self._link = link

    def observe_http(self, route: str, status: int, seconds: float, failure: str = "") -> None:
        """As RequestMetrics."""
        self._link.observe(self._model, "observe_http", route, status, seconds, failure)

    def observe_encode(self, seconds: float) -> None:
        """As RequestMetrics."""
        self._link.observe(self._model, "observe_encode", seconds)


class RemoteEngine(Lookups):
    """EngineLike for the model of a number: tokenises what is small, and has all else done where the engine is."""

    def __init__(self, model: int, info: ModelInfo, pool: TokenizerPool, link: Link) -> None:
        self.metrics = ForwardedMetrics(model, info.name, link)
        self._model = model
        self._info = info
        self._tokenizer = pool
        self._link = link

    def info(self) -> ModelInfo:
        """What is loaded, and its limits."""
        return self._info

    def check_health(self) -> None:
        """Raise NotReady while the engine's process says so, or has ended."""
        problem = self._link.problems[self._model]
        if problem is not None:
            raise NotReady(problem)

    async def run(self, request: Request) -> Response:
        """Answer one request; cancelling the coroutine drops what is still queued of it."""
        return await self._link.run(self._model, request, await self._tokenized(request))

    async def waiting(self) -> Waiting:
        """What has no answer yet, of all front-ends."""
        told: Waiting = await self._link.query(self._model, "waiting")
        return told

    async def _tokenized(self, request: Request) -> Tokenized | None:
        """What its inputs come to; None where that takes long, or fails: then the engine's process sees to it.

        There it is tokenised part by part, beside others, and what is wrong with a request is found in one order.
        """
        try:
            estimate = self._tokenizer.estimate(request.params)
            if self._tokenizer.is_small(request.inputs, estimate):
                return self._read(request)
            if not self._tokenizer.is_one_part(request.inputs, estimate):
                return None
        except Exception:
            return None
        try:
            return await self._read_on_a_thread(request, lane_of(request, estimate, self._info.max_batch_tokens))
        except asyncio.CancelledError:
            self._link.give_up(self._model, request)
            raise

    async def _read_on_a_thread(self, request: Request, lane: Lane) -> Tokenized | None:
        """By one of the pool's, in turn; of what nobody waits for any more, nothing is read."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Tokenized | None] = loop.create_future()

        def read() -> bool:
            if not done.cancelled():
                loop.call_soon_threadsafe(_settle, done, self._read(request))
            return False

        self._tokenizer.submit(read, lane)
        return await done

    def _read(self, request: Request) -> Tokenized | None:
        started_at = time.perf_counter()
        try:
            items = self._tokenizer.read(request, 0, len(request.inputs))
        except Exception:
            return None
        return Tokenized(items, started_at, time.perf_counter())


def _settle(done: "asyncio.Future[Tokenized | None]", tokenized: Tokenized | None) -> None:
    if not done.done():
        done.set_result(tokenized)
