"""The engine: requests to one model in, responses out; it knows nothing of HTTP."""

import asyncio
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial

from rtp_llm.config import EngineConfig
from rtp_llm.core import Input, ModelInfo, Params, Request, Response, TaskType
from rtp_llm.engine.delivery import Delivery
from rtp_llm.engine.device import SHUTTING_DOWN, Device
from rtp_llm.engine.entity_finder import EntityFinder
from rtp_llm.engine.estimate import Estimate
from rtp_llm.engine.gate import Gate
from rtp_llm.engine.in_order import run_in_order
from rtp_llm.engine.intake import Intake, expired
from rtp_llm.engine.job import Job, note_start
from rtp_llm.engine.lane import Lane, lane_of
from rtp_llm.engine.lookups import Lookups
from rtp_llm.engine.open_jobs import OpenJobs
from rtp_llm.engine.outcome import BrokenOff, Outcome, compute
from rtp_llm.engine.result_cache import ResultCache
from rtp_llm.engine.scheduler import Grant
from rtp_llm.engine.tokenizer_pool import PART_CHARACTERS, Tokenized, TokenizerPool
from rtp_llm.errors import EngineFailure, NotReady, Overloaded, RtpError
from rtp_llm.observability import Metrics, Waiting
from rtp_llm.runtime import Runtime

logger = logging.getLogger(__name__)

# Of a large request so many inputs, or PART_CHARACTERS, are tokenised at a time: then computing starts.
_PART_INPUTS = 64
_CANARY_TOKENS = 128
# Full steps for each core that a caller of many requests keeps waiting: one is tokenised while another is computed.
_STEPS_AHEAD = 2


class Engine(Lookups):
    """Admission, tokenising, batching and computing for one model.

    It computes on a device of its own, or shares `device` with the engines of other models; `token_cost` is about what
    one of its tokens costs beside one of the device's first model. `submit` may be called from any thread; the device's
    lock guards the jobs' counters, the gate and the result cache.
    """

    def __init__(
        self,
        config: EngineConfig,
        runtime: Runtime,
        tokenizer: TokenizerPool,
        info: ModelInfo,
        metrics: Metrics,
        device: Device | None = None,
        token_cost: float = 1.0,
    ) -> None:
        self.config = config
        self.metrics = metrics
        self.device = device or Device(
            info.max_batch_tokens, runtime.num_cores, config.bulk_share / 100, runtime.num_devices
        )
        self.runtime = runtime
        self._tokenizer = tokenizer
        self._info = info
        self._gate = Gate(config, runtime.num_cores, info.max_batch_tokens)
        self._cache = ResultCache(config.result_cache_mb << 20)
        self._intake = Intake(config, info, runtime.tasks, tokenizer, metrics.observe_expired)
        self._delivery = Delivery(runtime.tasks, metrics, EntityFinder(info, tokenizer), tokenizer.submit)
        self._open_jobs = OpenJobs(self.device, self._gate, self._cache, self._delivery, metrics)
        self._jobs = self._open_jobs.by_lane
        self._not_ready: str | None = "the canary has not run yet"
        self._changed = self.device.changed
        self._number = self.device.attach(self, info.max_batch_tokens, token_cost)
        self._queues = self.device.scheduler.models[self._number].lanes
        metrics.describe_model(info)
        for lane, queue in self._queues.items():
            metrics.watch_lane(lane.value, queue, self._jobs[lane])
        metrics.watch_drain_rate(lambda: self._gate.tokens_per_second)
        metrics.watch_cache(self._cache)
        metrics.watch_device(lambda: runtime.counts)
        runtime.watch(self.device.die)

    def info(self) -> ModelInfo:
        """What is loaded, and its limits."""
        return self._info

    def warm_up(self) -> None:
        """Answer a canary through the whole path, and through each route; from then on the engine is ready."""
        longest, tasks = min(_CANARY_TOKENS, self._info.max_seq_len), self._info.tasks
        last = next((task.last_token for task in self.runtime.tasks.values() if task.last_token is not None), 0)
        adapter = next(iter(self._info.adapters), None)
        for name in self.runtime.tasks[tasks[0]].purposes:
            ids: list[Input] = [[last], [*[0] * (longest - 1), last]]
            params = Params(prompt_name=name, adapter=adapter)
            request = Request(inputs=ids, tasks=tasks, params=params)
            if TaskType.CUSTOM in request.tasks:
                # A user's own code may need what only a real request has: everything but that is tried.
                items = self._intake.encode(Job(request, Future()), 0, len(request.inputs))
                self.runtime.run(items, self.runtime.num_cores)
            else:
                self.run_sync(request)
        self._not_ready = None

    def estimate(self, params: Params) -> Estimate:
        """The measure of inputs that come with these parameters."""
        return self._tokenizer.estimate(params)

    def check_health(self) -> None:
        """Raise NotReady unless the canary has passed and every thread of the device lives."""
        reason = self.device.failure or self._not_ready or self.device.problem
        if reason is not None:
            raise NotReady(reason)

    async def waiting(self) -> Waiting:
        """What has no answer yet."""
        return self.metrics.waiting()

    async def run(self, request: Request) -> Response:
        """Answer one request; cancelling the coroutine drops what is still queued of it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Response] = loop.create_future()
        job = self.submit(request, future, loop)
        try:
            return await future
        except asyncio.CancelledError:
            self.cancel(job)
            raise

    def run_sync(self, request: Request) -> Response:
        """Answer one request; the calling thread computes too, which saves a lone request two thread hops."""
        future: Future[Response] = Future()
        job = self.submit(request, future)
        try:
            return self.help_until(future)
        except BaseException:  # who was interrupted wants no more of it
            self.cancel(job)
            raise

    def run_many(self, requests: Iterable[Request]) -> Iterator[Response]:
        """Answer requests in order, a few of them in flight; waits where `run` would refuse: `run_in_order`."""
        yield from run_in_order(self, requests)

    def submit(
        self,
        request: Request,
        future: "asyncio.Future[Response] | Future[Response]",
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        may_refuse: bool = True,
        tokenized: Tokenized | None = None,
    ) -> Job:
        """Admit a request and start it; raises at once what can be known at once, else `future` gets it.

        may_refuse  Overloaded where there is no room; else it is taken in all the same
        tokenized   what has been made of its inputs already
        """
        estimate = self.estimate(request.params)
        lane = self._admit(request, estimate, may_refuse)
        job = Job(request, future, loop, lane, self._number)
        if tokenized is not None:
            items = self._intake.accept(job, tokenized.items)
            job.started_at, job.tokenized_at = tokenized.started_at, tokenized.ended_at
        elif self._tokenizer.is_small(request.inputs, estimate):
            items = self._intake.encode(job, 0, len(request.inputs))
        else:
            self._submit_in_parts(job, estimate)
            return job
        self._jobs[lane].add(job)
        self._open_jobs.enqueue(job, items)
        if loop is not None:
            self.device.wake_after_this_round(loop)
        return job

    def help_until(self, future: "Future[Response]") -> Response:
        """Compute on the calling thread while `future` is open; then its result."""
        return self.device.help_until(future)

    @property
    def has_work_ahead(self) -> bool:
        """What waits for this model, tokenised or not, keeps every core busy for a while."""
        tokens = sum(self._queued().values()) + sum(self._gate.announced.values())
        return tokens >= _STEPS_AHEAD * self.runtime.num_cores * self._info.max_batch_tokens

    def cancel(self, job: Job) -> None:
        """Nobody waits for it any more."""
        self._open_jobs.cancel(job)

    def expire(self, job: Job) -> bool:
        """Give up a job that is too late; False when it has an outcome. The device's lock is held."""
        return self._open_jobs.expire(job)

    def end(self, reason: str) -> None:
        """Nothing is computed from now on: whoever waits is told."""
        self._open_jobs.end(reason)

    def resolve(self, jobs: list[Job]) -> None:
        """Tell whoever waits for these jobs, all of which have an outcome."""
        self._open_jobs.resolve(jobs)

    def close(self, timeout: float = 30.0, reason: str = SHUTTING_DOWN) -> None:
        """End the device, for all models that share it: `Device.close`."""
        self.device.close(timeout, reason)

    def stop_intake(self, timeout: float) -> None:
        """Take no more requests, and wait until what came in is queued, but no longer than `timeout` seconds."""
        self._not_ready = self.device.closing
        self._tokenizer.close(timeout)

    def release(self) -> None:
        """End what the runtime has started, after the last batch."""
        self.runtime.close()

    def seconds_of_work(self) -> dict[Lane, float]:
        """What waits for this model, by lane, in seconds of the device."""
        return self._gate.seconds_of_work(self._queued())

    def core_seconds(self, num_tokens: float) -> float:
        """What one core needs for a batch of so many tokens; 0 before anything is measured."""
        return self._gate.core_seconds(num_tokens)

    def _admit(self, request: Request, estimate: Estimate, may_refuse: bool) -> Lane:
        refusal = self.device.refusal
        if refusal is not None:
            raise NotReady(refusal)
        self._intake.check(request)
        lane = lane_of(request, estimate, self._info.max_batch_tokens)
        if not may_refuse:
            return lane
        try:
            # Where results are kept, the answer may be there already.
            is_certain = not self._cache.capacity and (request.whole is None or not request.whole.has_begun)
            left = request.deadline - time.monotonic() if is_certain else math.inf
            num_bulk = self._open_jobs.count(lane) if lane is Lane.BULK else 0
            queued = self._queued()
            self._gate.check(lane, queued, num_bulk, self._work_of_others)
            if math.isfinite(left):
                own = partial(estimate.tokens, request.inputs)
                running = self.device.seconds_running
                self._gate.check_time(lane, queued, left, own, running, self._work_of_others)
        except Overloaded:
            if not request.patient and request.end():
                self.metrics.observe_refused(lane.value)
            raise
        if request.whole is not None:
            request.whole.has_begun = True
        return lane

    def _queued(self) -> dict[Lane, int]:
        return {lane: queue.tokens for lane, queue in self._queues.items()}

    def _work_of_others(self) -> Sequence[Mapping[Lane, float]]:
        return self.device.seconds_of_work(besides=self)

    def _submit_in_parts(self, job: Job, estimate: Estimate) -> None:
        """Have a large request tokenised part by part; NotReady where the tokenisers have ended meanwhile."""
        self._jobs[job.lane].add(job)
        # Over this it is refused, once that is known for certain: no more of it will ever wait.
        most = self.config.max_request_tokens
        self._open_jobs.expect(job, min(estimate.tokens(job.request.inputs, most), most))
        try:
            self._tokenizer.submit(partial(self._encode_part, job), job.lane)
        except RuntimeError:  # the pool was closed meanwhile
            self._open_jobs.expect_no_more(job)
            self._jobs[job.lane].discard(job)
            raise NotReady(self.device.refusal or SHUTTING_DOWN) from None

    def _encode_part(self, job: Job) -> bool:
        """Tokenise the next part of a large request -> whether more is left; runs on a tokeniser thread."""
        is_left = False
        try:
            if not job.done:
                inputs, start = job.request.inputs, job.next_input
                if job.request.deadline <= time.monotonic():
                    raise expired()
                estimate = self.estimate(job.request.params)
                job.next_input = estimate.end_of_part(inputs, start, _PART_INPUTS, max_characters=PART_CHARACTERS)
                self._open_jobs.enqueue(job, self._intake.encode(job, start, job.next_input))
                self.device.wake()
                is_left = job.next_input < len(inputs) and not job.done
        except Exception as error:  # the border: whatever a tokeniser raises belongs to this request alone
            if not isinstance(error, RtpError):
                logger.exception("request %s: tokenising failed", job.request.request_id)
                error = EngineFailure(f"tokenising failed: {type(error).__name__}")
            self._open_jobs.fail(job, error)
        finally:
            if not is_left:
                self._open_jobs.expect_no_more(job)
        return is_left

    def process(self, grant: Grant) -> None:
        """Compute a batch, free its cores, hand out what it finished."""
        started = time.perf_counter()
        outcomes: list[Outcome] | None = None
        try:
            note_start(grant.groups, started)
            outcomes = compute(self.runtime, grant.groups, grant.num_cores, self.metrics)
        finally:  # an interrupt, too, frees the cores and tells those who wait
            seconds = time.perf_counter() - started
            if outcomes is None:
                outcomes = [Outcome(group, {}, BrokenOff("the batch was broken off")) for group in grant.groups]
            with self._changed:
                try:
                    finished = self._open_jobs.store(outcomes)
                finally:
                    self.device.release(grant)
            self.resolve(finished)
            with self._changed:
                # Handing out is a part of what whoever waits behind it waits for.
                self._gate.observe(grant.num_tokens, time.perf_counter() - started, grant.num_cores)
        self.metrics.observe_batch(
            lane=grant.lane.value,
            num_tokens=grant.num_tokens,
            num_rows=len(grant.groups),
            num_duplicates=sum(len(group) - 1 for group in grant.groups),
            budget=self._info.max_batch_tokens,
            seconds=seconds,
        )
