"""The nouns that travel through every floor: a Request becomes Items, Items become Batches, rows become a Response."""

from rtp_llm.core.arrays import FloatArray, Int8Array, Int32Array, QuantizedWeight, Rows
from rtp_llm.core.batch import Batch, KeptPrefix, Prefixes, PrefixKey, Reads, pack
from rtp_llm.core.item import NO_ADAPTER, Chunk, Item
from rtp_llm.core.model_info import ModelInfo
from rtp_llm.core.request import (
    OF_TOKENS,
    AggregationStrategy,
    AnswerLimit,
    Chunking,
    Input,
    Params,
    Priority,
    Request,
    TaskType,
    Whole,
)
from rtp_llm.core.response import Output, Response, SparseVector

__all__ = [
    "AggregationStrategy",
    "AnswerLimit",
    "Batch",
    "Chunk",
    "Chunking",
    "FloatArray",
    "Input",
    "Int32Array",
    "Int8Array",
    "Item",
    "KeptPrefix",
    "ModelInfo",
    "NO_ADAPTER",
    "OF_TOKENS",
    "Output",
    "Params",
    "PrefixKey",
    "Prefixes",
    "Priority",
    "QuantizedWeight",
    "Reads",
    "Request",
    "Response",
    "Rows",
    "SparseVector",
    "TaskType",
    "Whole",
    "pack",
]
