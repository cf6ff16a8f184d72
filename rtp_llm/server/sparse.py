"""Sparse vectors in RTP-LLM's dialect: how many of their weights are wanted, and how they are written."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import orjson
from msgspec import Meta

from rtp_llm.core import Params, SparseVector
from rtp_llm.server.packed import EncodedBody


class SparseBody(EncodedBody, kw_only=True):
    """What a body may say of sparse vectors."""

    return_decoded: Annotated[
        bool | None, Meta(description="sparse: name tokens as the vocabulary does instead of by id; null: false")
    ] = None
    sparse_format: Annotated[
        Literal["map", "arrays"] | None, Meta(description="sparse: {id: weight}, or indices and values; null: map")
    ] = None
    max_active_dims: Annotated[
        int | None, Meta(description="sparse: so many of the largest weights are kept; null: as the checkpoint says")
    ] = None


def with_sparse(params: Params, body: SparseBody) -> Params:
    """The parameters, and what the body says of sparse vectors."""
    return replace(params, return_tokens=bool(body.return_decoded), max_active_dims=body.max_active_dims)


def weights(vector: SparseVector, body: SparseBody) -> bytes:
    """One vector as the body asks for it."""
    if body.sparse_format == "arrays":
        arrays: dict[str, Any] = {"indices": vector.indices, "values": vector.values}
        if vector.tokens is not None:
            arrays["tokens"] = vector.tokens
        return orjson.dumps(arrays, option=orjson.OPT_SERIALIZE_NUMPY)
    keys: Sequence[str] = vector.tokens or [str(index) for index in vector.indices.tolist()]
    return orjson.dumps(dict(zip(keys, vector.values, strict=True)), option=orjson.OPT_SERIALIZE_NUMPY)
