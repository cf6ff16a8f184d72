"""What is known of a request before anything is computed: whether it can be served, and its tokens."""

import time
from collections.abc import Callable, Mapping

from rtp_llm.adapter_choice import adapter_number, check_choice
from rtp_llm.config import EngineConfig
from rtp_llm.core import OF_TOKENS, Item, ModelInfo, Request, TaskType
from rtp_llm.engine.chunker import check_chunking
from rtp_llm.engine.entity_finder import ENTITY_BYTES, check_entities
from rtp_llm.engine.job import Job
from rtp_llm.engine.tokenizer_pool import TokenizerPool
from rtp_llm.errors import DeadlineExceeded, InvalidInput, InvalidRequest, RequestTooLarge, UnsupportedTask
from rtp_llm.tasks import Task

# A chunk of three tokens takes as long to be queued and joined as one of a hundred does to be computed.
_MOST_CHUNKS = 1 << 16


class Intake:
    """Checks requests and tokenises them; `on_expired` is told of each that is checked too late."""

    def __init__(
        self,
        config: EngineConfig,
        info: ModelInfo,
        tasks: Mapping[TaskType, Task],
        tokenizer: TokenizerPool,
        on_expired: Callable[[], None],
    ) -> None:
        self._on_expired = on_expired
        self._max_tokens = config.max_request_tokens
        self._info = info
        self._tasks = tasks
        self._tokenizer = tokenizer

    def check(self, request: Request) -> None:
        """InvalidRequest for what this model cannot serve, DeadlineExceeded for what comes too late."""
        for task in request.tasks:
            if task not in self._tasks:
                offered = ", ".join(t.value for t in self._tasks)
                raise UnsupportedTask(f"this model offers {offered}, not {task.value}")
            self._tasks[task].check(request.params)
        check_choice(request.params, self._info)
        check_chunking(request, self._tasks)
        check_entities(request)
        if not request.inputs:
            raise InvalidRequest("input is empty; give at least one text", param="input")
        if request.deadline <= time.monotonic():
            if request.end():
                self._on_expired()
            raise expired()

    def encode(self, job: Job, start: int, stop: int) -> list[Item]:
        """Some of the job's inputs as its items; RequestTooLarge as soon as its tokens are over the limit."""
        return self.accept(job, self._tokenizer.read(job.request, start, stop))

    def accept(self, job: Job, items: list[Item]) -> list[Item]:
        """Items that have been made of some of the job's inputs, as they are computed; errors as `encode`'s."""
        request = job.request
        job.accept(items, adapter_number(request.params, self._info))
        if job.total_tokens > self._max_tokens:
            raise RequestTooLarge(
                f"the request has over {self._max_tokens} tokens (max_request_tokens): send fewer inputs at a time",
                param="input",
            )
        if job.num_chunks > _MOST_CHUNKS:
            raise RequestTooLarge(
                f"the request has over {_MOST_CHUNKS} chunks: send fewer inputs at a time, or give a chunk more tokens",
                param="input",
            )
        self._check_answer(request, job.total_tokens)
        for task in request.tasks:
            num_read, last = self._tasks[task].num_read, self._tasks[task].last_token
            if last is not None:
                for item in items:
                    _check_end(item, last)
            if num_read is not None:
                for item in items:
                    _cut_end(item, num_read(item.input_ids))
        return items

    def _check_answer(self, request: Request, num_tokens: int) -> None:
        """RequestTooLarge where what so many tokens are answered with is over the request's own limit."""
        if request.answer_limit is None:
            return
        (most, number_bytes), kinds = request.answer_limit, OF_TOKENS.intersection(request.tasks)
        entity_bytes = 0 if request.params.aggregation_strategy is None else ENTITY_BYTES
        num_bytes = num_tokens * (entity_bytes + number_bytes * sum(self._tasks[kind].dimension for kind in kinds))
        if num_bytes > most:
            what = "entities" if entity_bytes else "vectors"
            raise RequestTooLarge(
                f"the {what} of {num_tokens} tokens or more take {num_bytes} bytes, the limit is {most} "
                "(max_answer_bytes): send fewer inputs at a time, or shorter ones",
                param="input",
            )


def _check_end(item: Item, token: int) -> None:
    """InvalidInput unless this token is its last."""
    if item.input_ids[-1] == token:
        return
    if item.truncated:
        raise InvalidInput(
            item.index,
            f" was cut to {item.num_tokens} tokens and has lost its end token, {token}, which this model's head reads: "
            "shorten it",
        )
    raise InvalidInput(
        item.index,
        f" ends with token {item.input_ids[-1]}, and this model's head reads its end token, {token}: end ids with "
        "that, and leave add_special_tokens true of texts",
    )


def _cut_end(item: Item, length: int) -> None:
    """Without the tokens behind so many, which are not read."""
    if length < item.num_tokens:
        item.input_ids = item.input_ids[:length]
        item.prefix = item.prefix if len(item.prefix) < item.input_ids.nbytes else b""
        if item.token_type_ids is not None:
            item.token_type_ids = item.token_type_ids[:length]


def expired() -> DeadlineExceeded:
    """What a request is told whose deadline has come, or will have before it can be computed."""
    return DeadlineExceeded("the request could not be computed before its deadline; allow more time, or send less")
