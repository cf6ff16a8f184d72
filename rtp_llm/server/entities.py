"""Entities on the wire, as transformers' token-classification pipeline and Hugging Face's inference API write them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, TypeAlias

import msgspec
import numpy as np
import orjson
from msgspec import UNSET, Meta, UnsetType

from rtp_llm.core import AggregationStrategy, ModelInfo, Params, Response, TaskType
from rtp_llm.errors import UnsupportedTask
from rtp_llm.server.catalog import CLASSIFIERS, Wanted, one_of

# A model that labels texts, or one that labels tokens, which a request may say that it means.
LABELLERS: Wanted = (*CLASSIFIERS, *one_of(TaskType.TOKEN_CLASSIFY))
Strategy: TypeAlias = Annotated[
    AggregationStrategy | None,
    Meta(description="token classifiers: how tokens become entities, in transformers' words; null: simple"),
]
IgnoredLabels: TypeAlias = Annotated[
    list[str] | None, Meta(description="token classifiers: labels that are left out; null: O")
]


class FoundEntity(msgspec.Struct, kw_only=True):
    """`entity_group` of tokens, or under `none` the `entity` of the one with this `index`; characters start:end."""

    score: float
    word: str
    start: int
    end: int
    entity_group: str | UnsetType = UNSET
    entity: str | UnsetType = UNSET
    index: int | UnsetType = UNSET


Stride: TypeAlias = Annotated[
    int | None,
    Meta(
        description="token classifiers: a text over the limit is read in windows that have so many tokens in common "
        "with the next, and is not cut; null: it is cut"
    ),
]


def with_entities(
    params: Params, strategy: AggregationStrategy | None, ignored: Sequence[str] | None, stride: int | None
) -> Params:
    """The parameters of a request for entities."""
    params = replace(params, aggregation_strategy=strategy or "simple", stride=stride)
    return params if ignored is None else replace(params, ignore_labels=tuple(ignored))


def check_means_texts(info: ModelInfo, strategy: AggregationStrategy | None, stride: int | None) -> None:
    """UnsupportedTask where a request says that it means a token classifier, which this model is not."""
    for name, value in (("aggregation_strategy", strategy), ("stride", stride)):
        if value is not None:
            offered = ", ".join(task.value for task in info.tasks)
            raise UnsupportedTask(f"{name} is for token classifiers; this model offers {offered}", param=name)


def labels_tokens(info: ModelInfo) -> bool:
    """Whether the model is a token classifier."""
    return TaskType.TOKEN_CLASSIFY in info.tasks


def has_entities(response: Response) -> bool:
    """Whether these are what was asked for."""
    return TaskType.TOKEN_CLASSIFY in response.outputs


def entity_arrays(response: Response) -> Iterator[bytes]:
    """A JSON array of each input's entities, in order."""
    for entities in response.outputs[TaskType.TOKEN_CLASSIFY]:
        # NOTE: as fp32 a score is written in the shortest form that gives it back.
        rows = [{**entity.as_dict(), "score": np.float32(entity.score)} for entity in entities]
        yield orjson.dumps(rows, option=orjson.OPT_SERIALIZE_NUMPY)


def joined(arrays: Iterator[bytes]) -> Iterator[bytes]:
    """An array of them, in pieces."""
    opening = b"["
    for array in arrays:
        yield opening + array
        opening = b","
    yield b"]" if opening == b"," else b"[]"
