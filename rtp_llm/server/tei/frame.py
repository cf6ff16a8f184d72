"""What TEI's routes share: truncation, headers, and errors as {"error", "error_type"} with its statuses."""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal

import msgspec
import orjson
from msgspec import Meta

from rtp_llm.config import ServerConfig
from rtp_llm.core import Input, ModelInfo, Params, Request, Response
from rtp_llm.errors import (
    CustomModuleError,
    DeadlineExceeded,
    EngineFailure,
    InvalidRequest,
    NotReady,
    Overloaded,
    RequestTooLarge,
    RtpError,
    Unauthorized,
    UnsupportedTask,
)
from rtp_llm.server.catalog import Wanted
from rtp_llm.server.checks import check_count
from rtp_llm.server.dialect import Body, Dialect, answer_headers
from rtp_llm.server.errors import Headers

Direction = Literal["left", "right", "Left", "Right", "LEFT", "RIGHT"]
Truncation = Annotated[
    Direction | None, Meta(description="the end that an over-long input loses; null: the checkpoint's, mostly right")
]
PromptName = Annotated[str | None, Meta(description="one of the checkpoint's prompts, put before each input")]
RawScores = Annotated[bool | None, Meta(description="logits; null: false")]


# The original's headers name a GPU wherever they are sent from.
COMPUTE_TYPE = "cpu+optimized"


class EmptyInput(InvalidRequest):
    """Nothing was sent."""

    code = "empty"


def place(body: object, info: ModelInfo, index: int) -> str:
    """The field by which the input of this number came."""
    return f"inputs[{index}]"


def error_form(error: RtpError) -> tuple[int, bytes]:
    """TEI's form: 422 for what does not validate, 424 for what the model does not do, 429, 413 for a body's bytes."""
    status, kind = _status(error)
    return status, orjson.dumps({"error": error.message, "error_type": kind})


def _status(error: RtpError) -> tuple[int, str]:
    if isinstance(error, EmptyInput):
        return 400, "Empty"
    if isinstance(error, UnsupportedTask | EngineFailure):
        return 424, "Backend"
    if isinstance(error, Unauthorized):
        return error.status, "Unauthorized"
    if isinstance(error, CustomModuleError | DeadlineExceeded):
        return error.status, "Backend"
    if isinstance(error, Overloaded):
        return 429, "Overloaded"
    if isinstance(error, NotReady):
        return 503, "Unhealthy"
    is_batch = isinstance(error, RequestTooLarge) and error.param is not None
    return 422 if error.status == 400 or is_batch else error.status, "Validation"


def check_inputs(inputs: Sequence[object], config: ServerConfig, param: str = "inputs") -> None:
    """EmptyInput for none, RequestTooLarge for too many."""
    if not inputs:
        raise EmptyInput(f"`{param}` cannot be empty", param=param)
    check_count(len(inputs), config, param)


def truncation(truncate: bool | None, direction: Direction | None) -> Params:
    """The parameters of what every route may say of over-long inputs."""
    side: Literal["left", "right"] | None = None
    if direction is not None:
        side = "left" if direction.lower() == "left" else "right"
    return Params(truncate=truncate is not False, truncation_side=side)


def headers(request: Request, response: Response) -> Headers:
    """x-compute-* and the times of the stages, in whole milliseconds as TEI has them; Server-Timing is finer."""
    timings = response.timings
    stages = {
        b"x-compute-time": timings.total,
        b"x-total-time": timings.total,
        b"x-tokenization-time": timings.tokenize,
        b"x-queue-time": timings.queue,
        b"x-inference-time": timings.compute,
    }
    return [
        *answer_headers(request, response),
        (b"x-compute-type", COMPUTE_TYPE.encode()),
        (b"x-compute-characters", b"%d" % sum(map(_characters, request.inputs))),
        (b"x-compute-tokens", b"%d" % response.total_tokens),
        *((name, b"%d" % round(seconds * 1e3)) for name, seconds in stages.items()),
    ]


def _characters(value: Input) -> int:
    if isinstance(value, tuple):
        return len(value[0]) + len(value[1])
    return len(value) if isinstance(value, str) else 0


def dialect(
    decoder: msgspec.json.Decoder[Body],
    to_request: Callable[[Body, ModelInfo, ServerConfig, str], Request],
    render: Callable[[Body, Response, ModelInfo], Iterator[bytes]],
    wanted: Wanted,
    place: Callable[[Body, ModelInfo, int], str] = place,
    render_on_thread: Callable[[Response], bool] = lambda response: False,
) -> Dialect[Body]:
    """A route of TEI's that the `wanted` models answer; `place` names the field of an input."""
    return Dialect(
        decoder, to_request, render, wanted, render_on_thread, error_form=error_form, headers=headers, place=place
    )


def dtype_name(info: ModelInfo) -> str:
    """What the model computes in, in TEI's words."""
    return info.dtype.replace("fp", "float").replace("bf16", "bfloat16")
