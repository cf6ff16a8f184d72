"""The engine: requests in, responses out; it owns the threads and the lock, and knows nothing of HTTP."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future

from rtp_llm.config import EngineConfig
from rtp_llm.core import Item, ModelInfo, Request, Response, TaskType
from rtp_llm.engine.delivery import Delivery
from rtp_llm.engine.gate import Gate
from rtp_llm.engine.intake import Intake, expired
from rtp_llm.engine.job import Job
from rtp_llm.engine.lane import Lane, estimate_tokens, lane_of
from rtp_llm.engine.result_cache import ResultCache
from rtp_llm.engine.scheduler import Grant, Scheduler
from rtp_llm.engine.step import Outcome, compute, item_failure
from rtp_llm.engine.tokenizer import Token, TokenizerPool
from rtp_llm.engine.waiting import key_of
from rtp_llm.errors import DeviceLost, EngineFailure, NotReady, Overloaded, RtpError
from rtp_llm.observability import Metrics
from rtp_llm.runtime import Runtime

logger = logging.getLogger(__name__)

# Inputs that one tokeniser job hands over at a time, so that computing starts before a large request is tokenised.
_TOKENIZE_CHUNK = 64
_CANARY_TOKENS = 128
# Requests that `run_many` keeps in flight: enough for full batches, few enough to bound memory.
_OFFLINE_IN_FLIGHT = 8


class Engine:
    """Admission, tokenising, batching and computing for one model.

    `submit` may be called from any thread. Each of the runtime's cores has a thread that takes batches; the scheduler,
    the jobs' counters and the result cache are guarded by one condition. When a batch thread dies, all that waits
    fails, `failure` says why, and `on_failure` is called, once: an engine that has lost a thread is not repaired, since
    nobody knows what else is broken, but ended, for a supervisor to start anew.
    """

    def __init__(
        self, config: EngineConfig, runtime: Runtime, tokenizer: TokenizerPool, info: ModelInfo, metrics: Metrics
    ) -> None:
        self.config = config
        self.metrics = metrics
        self.failure: str | None = None
        self.on_failure: Callable[[], None] = _nothing
        self._runtime = runtime
        self._tokenizer = tokenizer
        self._info = info
        self._scheduler = Scheduler(
            info.max_batch_tokens, runtime.num_cores, config.bulk_share / 100, runtime.num_devices
        )
        self._gate = Gate(config, runtime.num_cores)
        self._cache = ResultCache(config.result_cache_mb << 20)
        self._intake = Intake(config, runtime.tasks, tokenizer)
        self._delivery = Delivery(runtime.tasks, metrics)
        self._changed = threading.Condition()
        self._jobs: dict[Lane, set[Job]] = {lane: set() for lane in Lane}
        self._waking: set[asyncio.AbstractEventLoop | None] = set()
        self._closing = False
        self._drained = False
        self._not_ready: str | None = "the canary has not run yet"
        self._ended: str | None = None
        metrics.describe_model(info)
        for lane, queue in self._scheduler.lanes.items():
            metrics.watch_lane(lane.value, queue, self._jobs[lane])
        metrics.watch_drain_rate(lambda: self._gate.tokens_per_second)
        metrics.watch_cache(self._cache)
        metrics.watch_device(lambda: runtime.counts)
        self._threads = [
            threading.Thread(target=self._work, name=f"batch-{i}", daemon=True) for i in range(runtime.num_cores)
        ]
        for thread in self._threads:
            thread.start()
        runtime.watch(self._die)

    def info(self) -> ModelInfo:
        """What is loaded, and its limits."""
        return self._info

    def warm_up(self) -> None:
        """Answer a canary through the whole path; from then on the engine is ready."""
        longest = min(_CANARY_TOKENS, self._info.max_seq_len)
        request = Request(inputs=[[0], [0] * longest], tasks=self._info.tasks)
        if TaskType.CUSTOM in request.tasks:
            # A user's own code may need what only a real request has: everything but that is tried.
            items = self._intake.encode(Job(request, Future()), 0, len(request.inputs))
            self._runtime.run(items, self._runtime.num_cores)
        else:
            self.run_sync(request)
        self._not_ready = None

    def check_health(self) -> None:
        """Raise NotReady unless the canary has passed and every thread lives."""
        reason = self.failure or self._not_ready
        if reason is None and not all(thread.is_alive() for thread in self._threads):
            reason = "a batch thread has died"
        if reason is not None:
            raise NotReady(reason)

    def tokens(self, text: str, *, add_special_tokens: bool = True) -> list[Token]:
        """The tokens of a text as the model would read it, without prompt or limit."""
        return self._tokenizer.tokenizer.tokens(text, add_special_tokens=add_special_tokens)

    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; InvalidRequest for an id that is out of the vocabulary."""
        return self._tokenizer.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def prompt(self, name: str) -> str:
        """The text of the prompt called `name`, one of the model's."""
        return self._tokenizer.tokenizer.prompts[name]

    async def run(self, request: Request) -> Response:
        """Answer one request; cancelling the coroutine drops what is still queued of it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Response] = loop.create_future()
        job = self.submit(request, future, loop)
        try:
            return await future
        except asyncio.CancelledError:
            self._cancel(job)
            raise

    def run_sync(self, request: Request) -> Response:
        """Answer one request; the calling thread computes too, which saves a lone request two thread hops."""
        future: Future[Response] = Future()
        self.submit(request, future)
        return self._help_until(future)

    def run_many(self, requests: Iterable[Request]) -> Iterator[Response]:
        """Answer requests in order, a few of them in flight; waits where `run` would refuse."""
        waiting: list[Future[Response]] = []
        for request in requests:
            if len(waiting) == _OFFLINE_IN_FLIGHT:
                yield self._help_until(waiting.pop(0))
            waiting.append(Future())
            self.submit(request, waiting[-1])
        for future in waiting:
            yield self._help_until(future)

    def submit(
        self,
        request: Request,
        future: "asyncio.Future[Response] | Future[Response]",
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> Job:
        """Admit a request and start it; raises at once what can be known at once, else `future` gets it."""
        lane = self._admit(request)
        job = Job(request, future, loop, lane)
        if self._tokenizer.is_small(request.inputs):
            items = self._intake.encode(job, 0, len(request.inputs))
            self._jobs[lane].add(job)
            self._enqueue(job, items)
            if loop is not None:
                self._wake_after_this_round(loop)
        else:
            self._jobs[lane].add(job)
            with self._changed:
                self._gate.announce(job, estimate_tokens(request.inputs))
            self._tokenizer.submit(self._encode_all, job)
        return job

    def close(self, timeout: float = 30.0) -> None:
        """Stop taking requests, compute what is in, end the threads; what is left after `timeout` seconds fails."""
        deadline = time.monotonic() + timeout
        self._not_ready = "the server is shutting down"
        self._closing = True
        self._tokenizer.close()
        with self._changed:
            self._drained = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0.0))
        self._end("the server was shut down before this request was done")
        self._runtime.close()

    def _admit(self, request: Request) -> Lane:
        if self._closing or self._ended is not None:
            raise NotReady(self.failure or "the server is shutting down")
        self._intake.check(request)
        lane = lane_of(request, self._info.max_batch_tokens)
        queued = {name: queue.tokens for name, queue in self._scheduler.lanes.items()}
        try:
            self._gate.check(lane, queued, len(self._jobs[lane]))
        except Overloaded:
            self.metrics.observe_refused(lane.value)
            raise
        return lane

    def _encode_all(self, job: Job) -> None:
        """Tokenise a large request part by part; runs on a tokeniser thread."""
        try:
            for start in range(0, len(job.request.inputs), _TOKENIZE_CHUNK):
                if job.done:
                    return
                self._intake.check_deadline(job.request)
                self._enqueue(job, self._intake.encode(job, start, start + _TOKENIZE_CHUNK))
                self._wake()
        except Exception as error:  # the border: whatever a tokeniser raises belongs to this request alone
            if not isinstance(error, RtpError):
                logger.exception("request %s: tokenising failed", job.request.request_id)
                error = EngineFailure(f"tokenising failed: {type(error).__name__}")
            self._fail(job, error)
        finally:
            with self._changed:
                self._gate.announce(job, -job.announced)

    def _enqueue(self, job: Job, items: list[Item]) -> None:
        """Queue what must be computed; what the cache knows is there at once."""
        with self._changed:
            self._gate.announce(job, -sum(item.num_own_tokens for item in items))
            if job.done:
                return
            if self._ended is not None:
                self._mark_failed(job, NotReady(self._ended))
            else:
                unknown = [item for item in items if not self._recall(job, item)] if self._cache.capacity else items
                self._scheduler.add(job.lane, unknown)
            is_done = job.done
        if is_done:
            self._resolve([job])

    def _recall(self, job: Job, item: Item) -> bool:
        rows = self._cache.get(key_of(item))
        self.metrics.observe_cache(hit=rows is not None)
        if rows is None:
            return False
        job.store(item, rows)
        return True

    def _wake_after_this_round(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake an idle core when the loop has seen to all that arrived with this request, not for its first alone."""
        if loop not in self._waking:
            self._waking.add(loop)
            loop.call_soon(self._wake, loop)

    def _wake(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        with self._changed:
            self._waking.discard(loop)
            self._changed.notify()

    def _cancel(self, job: Job) -> None:
        with self._changed:
            if not job.done:
                job.cancelled = True
                self._scheduler.drop(job)
                self._jobs[job.lane].discard(job)
                self.metrics.observe_cancelled()

    def _fail(self, job: Job, error: Exception) -> None:
        with self._changed:
            failed = self._mark_failed(job, error)
        if failed:
            self._resolve([job])

    def _end(self, reason: str) -> None:
        """Nothing is computed from now on: whoever waits is told."""
        with self._changed:
            self._ended = reason
            self._changed.notify_all()
        for jobs in self._jobs.values():
            for job in list(jobs):
                with self._changed:
                    self._mark_failed(job, NotReady(reason))
                # Also where it has an outcome already: the thread may have died on the way to deliver it.
                self._delivery.give_up(job, NotReady(reason))
                jobs.discard(job)

    def _mark_failed(self, job: Job, error: Exception) -> bool:
        """False when it has an outcome already."""
        if job.done:
            return False
        job.error = error
        self._scheduler.drop(job)
        return True

    def _work(self) -> None:
        """A batch thread: take, compute, deliver, until the engine closes and the queue is dry."""
        try:
            while (grant := self._wait_for_grant()) is not None:
                self._process(grant)
        except BaseException as error:  # whatever ends this thread, nobody may wait for it
            self._die(error)

    def _die(self, error: BaseException) -> None:
        if isinstance(error, DeviceLost):  # its message is all there is to say
            reason = str(error)
            logger.critical("%s", reason)
        else:
            reason = f"a batch thread has died ({type(error).__name__})"
            logger.critical("a batch thread has died", exc_info=error)
        first, self.failure = self.failure is None, self.failure or reason
        self._end(self.failure)
        if first:
            self.on_failure()

    def _help_until(self, future: "Future[Response]") -> Response:
        """Compute whatever waits while `future` is open; then its result."""
        while not future.done():
            grant, late = self._take()
            self._resolve(late)
            if grant is None and not late:
                break
            if grant is not None:
                self._process(grant)
        return future.result()

    def _wait_for_grant(self) -> Grant | None:
        while self._ended is None:
            with self._changed:
                grant, late = self._take()
                if grant is None and not late:
                    if self._drained and self._scheduler.queued_tokens == 0:
                        return None
                    self._changed.wait()
            self._resolve(late)
            if grant is not None:
                return grant
        return None

    def _take(self) -> tuple[Grant | None, list[Job]]:
        """The next batch, if any, and jobs that came too late; another thread is woken when more waits."""
        with self._changed:
            grant = self._scheduler.next_batch(time.monotonic())
            late = [job for job in self._scheduler.take_expired() if self._mark_failed(job, expired())]
            for _ in late:
                self.metrics.observe_expired()
            if grant is None:
                return None, late
            if self._scheduler.queued_tokens and self._scheduler.free_cores:
                self._changed.notify()
        now = time.perf_counter()
        for group in grant.groups:
            for item in group:
                if not item.owner.computing_at:
                    item.owner.computing_at = now
        return grant, late

    def _process(self, grant: Grant) -> None:
        """Compute a batch, free its cores, hand out what it finished."""
        started = time.perf_counter()
        outcomes = [Outcome(group, {}, EngineFailure("the batch was broken off")) for group in grant.groups]
        try:
            outcomes = compute(self._runtime, grant.groups, grant.num_cores, self.metrics)
        finally:  # an interrupt, too, frees the cores and tells those who wait
            seconds = time.perf_counter() - started
            with self._changed:
                finished = [job for outcome in outcomes for job in self._store(outcome)]
                self._scheduler.release(grant)
                self._gate.observe(grant.num_tokens, seconds, grant.num_cores)
                if self._scheduler.queued_tokens:
                    self._changed.notify()
            self._resolve(finished)
        self.metrics.observe_batch(
            lane=grant.lane.value,
            num_tokens=grant.num_tokens,
            num_rows=len(grant.groups),
            num_duplicates=sum(len(group) - 1 for group in grant.groups),
            budget=self._info.max_batch_tokens,
            seconds=seconds,
        )

    def _store(self, outcome: Outcome) -> list[Job]:
        """Hand an item's rows to its job, and to those of identical items. -> jobs that are now done."""
        finished: list[Job] = []
        for item in outcome.items:
            job: Job = item.owner
            if job.done:
                continue
            if outcome.error is not None:
                self.metrics.observe_failed_input()
                self._mark_failed(job, item_failure(item, outcome.error))
            else:
                job.store(item, outcome.rows)
            if job.done:
                finished.append(job)
        if self._cache.capacity and outcome.error is None:
            self._cache.put(key_of(outcome.items[0]), outcome.rows)
        return finished

    def _resolve(self, jobs: list[Job]) -> None:
        self._delivery.deliver(jobs)
        for job in jobs:
            self._jobs[job.lane].discard(job)


def _nothing() -> None:
    """Nobody asked to be told."""
