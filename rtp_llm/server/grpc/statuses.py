"""How an RPC fails: the status of each error, and what its caller is told."""

from typing import Any, TypeAlias

import grpc

from rtp_llm.errors import EngineFailure, InvalidRequest, Overloaded, RtpError, UnknownModel, UnsupportedTask
from rtp_llm.server.cuts import HEADER, CutPlaces

# The context of an RPC; grpcio has no types.
Context: TypeAlias = Any

_MAX_DETAILS = 400  # characters: trailers have 8 KiB in all, and a character may take 12 bytes of them
_CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def code_of(error: Exception) -> Any:
    """The status, as the original gives it: what the model cannot do, or failed on, is a failed precondition."""
    if isinstance(error, (UnsupportedTask, EngineFailure)):
        return grpc.StatusCode.FAILED_PRECONDITION
    if isinstance(error, UnknownModel):
        return grpc.StatusCode.NOT_FOUND
    if isinstance(error, InvalidRequest):
        return grpc.StatusCode.INVALID_ARGUMENT
    # What nobody foresaw is told as an EngineFailure too, but is no precondition.
    return _CODES.get(error.status if isinstance(error, RtpError) else 500, grpc.StatusCode.INTERNAL)


async def abort(context: Context, code: Any, error: RtpError, request_id: str, cut: CutPlaces) -> None:
    """End the RPC; the caller learns of the error what every user may, and what was `cut` of a stream's first part."""
    trailers = [("x-request-id", request_id)]
    if cut:
        trailers.append((HEADER, str(cut)))
    if isinstance(error, Overloaded):
        # gRPC's own word for Retry-After, which clients with a retry policy obey.
        trailers.append(("grpc-retry-pushback-ms", str(round(error.retry_after * 1e3))))
    await context.abort(code, error.message[:_MAX_DETAILS], tuple(trailers))
