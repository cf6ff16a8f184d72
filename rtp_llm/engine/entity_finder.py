"""A request's entities, from its tokens' scores and the places of the tokens in its texts."""

from collections.abc import Generator, Mapping
from itertools import chain, islice

import numpy as np

from rtp_llm.core import AggregationStrategy, ModelInfo, Output, Request, TaskType
from rtp_llm.engine.job import Job
from rtp_llm.engine.tokenizer_pool import TokenizerPool
from rtp_llm.entities import Entity, Labels, find_entities, without_overlaps
from rtp_llm.errors import InvalidInput, InvalidRequest

# Of the answer, for each token that was read: the least of an entity in JSON is some 80, and every token may be one.
ENTITY_BYTES = 128


def check_entities(request: Request) -> None:
    """InvalidRequest where entities are wanted beside something else, or of what has no characters of its own."""
    if request.params.stride is not None:
        _check_stride(request.params.stride, request.params.aggregation_strategy)
    if request.params.aggregation_strategy is None:
        return
    if request.tasks != (TaskType.TOKEN_CLASSIFY,):
        message = f"aggregation_strategy is of {TaskType.TOKEN_CLASSIFY.value} alone: ask for no other task"
        raise InvalidRequest(message, param="aggregation_strategy")
    for index, value in enumerate(request.inputs):
        if not isinstance(value, str):
            kind = "a pair of texts" if isinstance(value, tuple) else "token ids"
            raise InvalidInput(index, f" is {kind}; entities are found in single texts")


def _check_stride(stride: int, strategy: AggregationStrategy | None) -> None:
    """As in transformers, where a stride is of entities that are groups of tokens."""
    if stride < 0:
        raise InvalidRequest(f"stride: {stride} is below 0; leave it out to have a long text cut", param="stride")
    if strategy in (None, "none"):
        message = "stride is for entities by an aggregation_strategy: simple, first, average or max"
        raise InvalidRequest(message, param="stride")


class EntityFinder:
    """Labels and words of one model."""

    def __init__(self, info: ModelInfo, tokenizer: TokenizerPool) -> None:
        self._labels = Labels(info.labels)
        self._tokenizer = tokenizer

    def find(
        self, job: Job, scores: Mapping[TaskType, Output]
    ) -> Generator[int, None, dict[TaskType, list[list[Entity]]]]:
        """The scores of a job's tokens [tokens, labels], an input each -> its entities.

        Says of each window how many tokens it had, and may wait there for the next.
        """
        request, words = job.request, self._tokenizer.tokenizer.words
        ((task, rows),) = scores.items()
        windows = iter(rows)
        counts = [len(own) for own in job.chunks.rows] if job.chunks is not None else [1] * len(request.inputs)
        found = []
        for text, ids, spans, count in zip(request.inputs, job.input_ids, job.spans, counts, strict=True):
            own = [*islice(windows, count)]
            edges = np.cumsum([len(window) for window in own[:-1]], dtype=np.intp)
            parts = zip(np.split(ids, edges), np.split(spans, edges), own, strict=True)
            by_window = []
            for part in parts:
                by_window.append(
                    find_entities(str(text), *part, labels=self._labels, words=words, params=request.params)
                )
                yield len(part[0])
            found.append(by_window[0] if count == 1 else without_overlaps(chain.from_iterable(by_window)))
        return {task: found}
