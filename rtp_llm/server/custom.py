"""Whatever the operator's own post-processing answers. POST /v1/custom."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import msgspec
import orjson
from msgspec import Meta

from rtp_llm.config import ServerConfig
from rtp_llm.core import Input, ModelInfo, Params, Request, Response, TaskType
from rtp_llm.errors import CustomModuleError
from rtp_llm.server.catalog import ModelName, one_of
from rtp_llm.server.checks import check_inputs
from rtp_llm.server.dialect import Dialect
from rtp_llm.server.usage import Usage, usage

PATH = "/v1/custom"


class CustomBody(msgspec.Struct, kw_only=True):
    """What the module is to read, and what else it wants to know. Unknown fields are ignored; null means absent."""

    input: Annotated[str | list[str | tuple[str, str]], Meta(description="a text, or texts and pairs in any mixture")]
    extra: Annotated[dict[str, Any] | None, Meta(description="the module's own parameters")] = None
    prompt: Annotated[str | None, Meta(description="text put before each input; empty: nothing")] = None
    prompt_name: Annotated[str | None, Meta(description="one of the checkpoint's prompts")] = None
    truncate: Annotated[bool | None, Meta(description="false: an input over the limit is an error")] = None
    model: ModelName = None


class CustomAnswer(msgspec.Struct, kw_only=True):
    """`data` is what the module returned; arrays are lists."""

    object: Literal["custom"]
    data: Any
    model: str
    usage: Usage


def to_request(body: CustomBody, info: ModelInfo, config: ServerConfig, request_id: str) -> Request:
    """Texts and pairs as they are, with the caller's own parameters."""
    inputs: Sequence[Input] = [body.input] if isinstance(body.input, str) else body.input
    check_inputs(inputs, config, "input")
    params = Params(
        prompt=body.prompt,
        prompt_name=body.prompt_name or None,
        truncate=body.truncate is not False,
        extra=body.extra or {},
    )
    return Request(inputs=inputs, tasks=(TaskType.CUSTOM,), params=params, request_id=request_id)


def render(body: CustomBody, response: Response, info: ModelInfo) -> Iterator[bytes]:
    """The module's answer; CustomModuleError where JSON cannot hold it."""
    answer = {
        "object": "custom",
        "data": response.outputs[TaskType.CUSTOM],
        "model": info.name,
        "usage": usage(response),
    }
    try:
        yield orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError as error:
        raise CustomModuleError(f"JSON cannot hold what the custom module returned: {error}") from None


CUSTOM: Dialect[CustomBody] = Dialect(
    msgspec.json.Decoder(CustomBody), to_request, render, one_of(TaskType.CUSTOM), render_on_thread=True
)
