"""A request's entities, from its tokens' scores and the places of the tokens in its texts."""

from collections.abc import Mapping

from rtp_llm.core import ModelInfo, Output, Request, TaskType
from rtp_llm.engine.job import Job
from rtp_llm.engine.tokenizer_pool import TokenizerPool
from rtp_llm.entities import Entity, Labels, find_entities
from rtp_llm.errors import InvalidInput, InvalidRequest

# Of the answer, for each token that was read: the least of an entity in JSON is some 80, and every token may be one.
ENTITY_BYTES = 128


def check_entities(request: Request) -> None:
    """InvalidRequest where entities are wanted beside something else, or of what has no characters of its own."""
    if request.params.aggregation_strategy is None:
        return
    if request.tasks != (TaskType.TOKEN_CLASSIFY,):
        message = f"aggregation_strategy is of {TaskType.TOKEN_CLASSIFY.value} alone: ask for no other task"
        raise InvalidRequest(message, param="aggregation_strategy")
    for index, value in enumerate(request.inputs):
        if not isinstance(value, str):
            kind = "a pair of texts" if isinstance(value, tuple) else "token ids"
            raise InvalidInput(index, f" is {kind}; entities are found in single texts")


class EntityFinder:
    """Labels and words of one model."""

    def __init__(self, info: ModelInfo, tokenizer: TokenizerPool) -> None:
        self._labels = Labels(info.labels)
        self._tokenizer = tokenizer

    def find(self, job: Job, scores: Mapping[TaskType, Output]) -> dict[TaskType, list[list[Entity]]]:
        """The scores of a job's tokens [tokens, labels], an input each -> its entities."""
        request, words = job.request, self._tokenizer.tokenizer.words
        ((task, rows),) = scores.items()
        read = zip(request.inputs, job.input_ids, job.spans, rows, strict=True)
        return {
            task: [
                find_entities(str(text), ids, spans, own, labels=self._labels, words=words, params=request.params)
                for text, ids, spans, own in read
            ]
        }
