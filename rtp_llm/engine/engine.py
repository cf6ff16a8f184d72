"""The engine: requests in, responses out; it owns the threads and the lock, and knows nothing of HTTP."""

import asyncio
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from itertools import groupby

import numpy as np

from rtp_llm.config import EngineConfig
from rtp_llm.core import Item, ModelInfo, Request, Response, Rows, TaskType
from rtp_llm.engine.job import Job
from rtp_llm.engine.scheduler import Grant, Scheduler
from rtp_llm.engine.tokenizer import Token, TokenizerPool
from rtp_llm.errors import (
    EngineFailure,
    InvalidRequest,
    NotReady,
    Overloaded,
    RequestTooLarge,
    RtpError,
    UnsupportedTask,
)
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

    `submit` may be called from any thread. Each of the runtime's cores has a thread that takes batches; the scheduler
    and the jobs' counters are guarded by one condition.
    """

    def __init__(
        self, config: EngineConfig, runtime: Runtime, tokenizer: TokenizerPool, info: ModelInfo, metrics: Metrics
    ) -> None:
        self.config = config
        self.metrics = metrics
        self._runtime = runtime
        self._tokenizer = tokenizer
        self._info = info
        self._scheduler = Scheduler(info.max_batch_tokens, runtime.num_cores)
        self._changed = threading.Condition()
        self._jobs: set[Job] = set()
        self._waking: set[asyncio.AbstractEventLoop | None] = set()
        self._closing = False
        self._drained = False
        self._drain_rate = 0.0
        self._not_ready: str | None = "the canary has not run yet"
        metrics.queued_tokens.set_function(lambda: self._scheduler.queued_tokens)
        metrics.describe_model(info)
        self._threads = [
            threading.Thread(target=self._work, name=f"batch-{i}", daemon=True) for i in range(runtime.num_cores)
        ]
        for thread in self._threads:
            thread.start()

    def info(self) -> ModelInfo:
        """What is loaded, and its limits."""
        return self._info

    def warm_up(self) -> None:
        """Answer a canary through the whole path; from then on the engine is ready."""
        longest = min(_CANARY_TOKENS, self._info.max_seq_len)
        request = Request(inputs=[[0], [0] * longest], tasks=self._info.tasks)
        if TaskType.CUSTOM in request.tasks:
            # A user's own code may need what only a real request has: everything but that is tried.
            items = self._encode(request, 0, len(request.inputs))
            for item in items:
                item.tasks = request.tasks
            self._checked_run(items, self._runtime.num_cores)
        else:
            self.run_sync(request)
        self._not_ready = None

    def check_health(self) -> None:
        """Raise NotReady unless the canary has passed and every thread lives."""
        reason = self._not_ready
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
        self._admit(request)
        job = Job(request, future, loop)
        if self._tokenizer.is_small(request.inputs):
            items = self._encode(request, 0, len(request.inputs))
            self._accept(job, items)
            self._jobs.add(job)
            self._enqueue(items)
            if loop is not None:
                self._wake_after_this_round(loop)
        else:
            self._jobs.add(job)
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
        for job in list(self._jobs):
            self._fail(job, NotReady("the server was shut down before this request was done"))

    def _admit(self, request: Request) -> None:
        if self._closing:
            raise NotReady("the server is shutting down")
        for task in request.tasks:
            if task not in self._runtime.tasks:
                offered = ", ".join(t.value for t in self._runtime.tasks)
                raise UnsupportedTask(f"this model offers {offered}, not {task.value}")
            self._runtime.tasks[task].check(request.params)
        if not request.inputs:
            raise InvalidRequest("input is empty; give at least one text", param="input")
        waiting = self._scheduler.queued_tokens
        if waiting >= self.config.max_queued_tokens:
            wait = waiting / self._drain_rate if self._drain_rate else 1.0
            raise Overloaded(
                f"{waiting} tokens are waiting, max_queued_tokens is {self.config.max_queued_tokens}; "
                f"try again in {wait:.0f} s",
                retry_after=wait,
            )

    def _encode(self, request: Request, start: int, stop: int) -> list[Item]:
        inputs = request.inputs[start:stop]
        return self._tokenizer.encode(inputs, request.params, start, rerank=TaskType.RERANK in request.tasks)

    def _encode_all(self, job: Job) -> None:
        """Tokenise a large request part by part; runs on a tokeniser thread."""
        try:
            for start in range(0, len(job.request.inputs), _TOKENIZE_CHUNK):
                if job.done:
                    return
                items = self._encode(job.request, start, start + _TOKENIZE_CHUNK)
                self._accept(job, items)
                self._enqueue(items)
                self._wake()
        except Exception as error:  # the border: whatever a tokeniser raises belongs to this request alone
            if not isinstance(error, RtpError):
                logger.exception("request %s: tokenising failed", job.request.request_id)
                error = EngineFailure(f"tokenising failed: {type(error).__name__}")
            self._fail(job, error)

    def _accept(self, job: Job, items: list[Item]) -> None:
        """RequestTooLarge as soon as the job's tokens are over the limit."""
        job.accept(items)
        limit = self.config.max_request_tokens
        if job.total_tokens > limit:
            raise RequestTooLarge(
                f"the request has over {limit} tokens (max_request_tokens): send fewer inputs at a time", param="input"
            )

    def _enqueue(self, items: list[Item]) -> None:
        with self._changed:
            self._scheduler.add(item for item in items if not item.owner.done)

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
                self._jobs.discard(job)
                self.metrics.observe_cancelled()

    def _fail(self, job: Job, error: Exception) -> None:
        with self._changed:
            failed = not job.done
            if failed:
                job.error = error
                self._scheduler.drop(job)
        if failed:
            self._resolve([job])

    def _work(self) -> None:
        """A batch thread: take, compute, deliver, until the engine closes and the queue is dry."""
        while (grant := self._wait_for_grant()) is not None:
            self._process(grant)

    def _help_until(self, future: "Future[Response]") -> Response:
        """Compute whatever waits while `future` is open; then its result."""
        while not future.done():
            with self._changed:
                grant = self._take()
            if grant is None:
                break
            self._process(grant)
        return future.result()

    def _wait_for_grant(self) -> Grant | None:
        with self._changed:
            while (grant := self._take()) is None:
                if self._drained and self._scheduler.queued_tokens == 0:
                    return None
                self._changed.wait()
            return grant

    def _take(self) -> Grant | None:
        """The next batch, if any; another thread is woken when more waits and cores are free."""
        grant = self._scheduler.next_batch()
        if grant is None:
            return None
        if self._scheduler.queued_tokens and self._scheduler.free_cores:
            self._changed.notify()
        now = time.perf_counter()
        for item in grant.items:
            if not item.owner.computing_at:
                item.owner.computing_at = now
        return grant

    def _process(self, grant: Grant) -> None:
        """Compute a batch, free its cores, hand out what it finished."""
        started = time.perf_counter()
        finished = self._compute(grant)
        seconds = time.perf_counter() - started
        with self._changed:
            self._scheduler.release(grant)
            rate = grant.num_tokens / seconds * self._runtime.num_cores / grant.num_cores
            self._drain_rate += 0.1 * (rate - self._drain_rate) if self._drain_rate else rate
            if self._scheduler.queued_tokens:
                self._changed.notify()
        self._resolve(finished)
        self.metrics.observe_batch(grant.num_tokens, seconds)

    def _compute(self, grant: Grant) -> list[Job]:
        """Run the batch; where it fails, run its items one by one, so that only the bad one fails. -> jobs now done."""
        try:
            return self._store(grant.items, self._checked_run(grant.items, grant.num_cores))
        except Exception as error:  # the border: a batch may fail in any way and must not end the thread
            self.metrics.observe_failed_batch()
            if len(grant.items) == 1:
                return self._fail_item(grant.items[0], error)
            logger.warning("a batch of %d items failed (%s); running them one by one", len(grant.items), error)
        finished = []
        for item in grant.items:
            try:
                finished += self._store([item], self._checked_run([item], grant.num_cores))
            except Exception as error:  # as above
                finished += self._fail_item(item, error)
        return finished

    def _checked_run(self, items: Sequence[Item], num_cores: int) -> dict[TaskType, Rows]:
        rows = self._runtime.run(items, num_cores)
        for computed in rows.values():
            matrices = computed if isinstance(computed, list) else [computed]
            if not all(np.isfinite(matrix).all() for matrix in matrices):
                raise EngineFailure("the model returned NaN or infinity")
        return rows

    def _store(self, items: Sequence[Item], rows: dict[TaskType, Rows]) -> list[Job]:
        finished = []
        with self._changed:
            for row, item in enumerate(items):
                job: Job = item.owner
                if job.done:
                    continue
                job.store(item, rows, row)
                if job.remaining == 0:
                    finished.append(job)
        return finished

    def _fail_item(self, item: Item, error: Exception) -> list[Job]:
        job: Job = item.owner
        id_, length = job.request.request_id, len(item.input_ids)
        logger.error("request %s: input %d of %d tokens failed", id_, item.index, length, exc_info=error)
        with self._changed:
            if job.done:
                return []
            message = error.message if isinstance(error, RtpError) else type(error).__name__
            job.error = EngineFailure(f"computing input {item.index} failed: {message}")
            self._scheduler.drop(job)
        return [job]

    def _resolve(self, jobs: list[Job]) -> None:
        """Hand finished or failed jobs to their waiters, with one wake-up per event loop."""
        self._jobs.difference_update(jobs)
        for loop, group in groupby(sorted(jobs, key=lambda job: id(job.loop)), key=lambda job: job.loop):
            settled = [(job, self._outcome(job)) for job in group]
            if loop is None:
                _settle(settled)
                continue
            try:
                loop.call_soon_threadsafe(_settle, settled)
            except RuntimeError:
                logger.debug("an event loop closed before %d of its answers", len(settled))

    def _outcome(self, job: Job) -> Response | Exception:
        if job.error is not None:
            return job.error
        tasks, params = self._runtime.tasks, job.request.params
        try:
            outputs = {task: tasks[task].finish(rows, params, job.input_ids) for task, rows in job.outputs.items()}
        except Exception as error:  # the border: an answer that cannot be finished must not end the batch thread
            if isinstance(error, RtpError):
                return error
            logger.exception("request %s: finishing the answer failed", job.request.request_id)
            return EngineFailure(f"finishing the answer failed: {type(error).__name__}")
        response = Response(
            outputs=outputs,
            num_tokens=job.num_tokens,
            truncated=job.truncated,
            input_ids=job.input_ids,
            timings=job.timings(),
        )
        self.metrics.observe_response(response)
        return response


def _settle(settled: list[tuple[Job, Response | Exception]]) -> None:
    for job, outcome in settled:
        if job.future.done():
            continue
        if isinstance(outcome, Exception):
            job.future.set_exception(outcome)
        else:
            job.future.set_result(outcome)
