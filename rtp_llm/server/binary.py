"""Dense vectors as nothing but numbers, where Accept asks for them: the rows end to end, or a file of numpy's."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from rtp_llm.config import ServerConfig
from rtp_llm.core import FloatArray, ModelInfo, Request, Response, TaskType
from rtp_llm.errors import InvalidRequest
from rtp_llm.server.cuts import truncated_header
from rtp_llm.server.dialect import Body, Dialect
from rtp_llm.server.errors import Headers
from rtp_llm.server.vectors import finite, npy_file, raw_bytes

# What Accept may ask for instead of JSON.
FORMS: dict[bytes, Callable[[FloatArray, str], Iterator[bytes]]] = {
    b"application/octet-stream": raw_bytes,
    b"application/x-npy": npy_file,
}


def binary(
    dialect: Dialect[Body], content_type: bytes, vector_type: Callable[[Body], str] = lambda _: "float"
) -> Dialect[Body]:
    """The form of a dialect whose answer is of this type; InvalidRequest to what asks for anything but dense vectors.

    vector_type  the type of the numbers, in the words of vectors.VectorType
    """
    write = FORMS[content_type]

    def to_request(body: Body, info: ModelInfo, config: ServerConfig, request_id: str) -> Request:
        request = dialect.to_request(body, info, config, request_id)
        if request.tasks != (TaskType.DENSE,):
            message = "raw bytes and .npy hold dense vectors; ask for application/json, and no encoding_format bytes"
            raise InvalidRequest(message)
        return request

    def render(body: Body, response: Response, info: ModelInfo) -> Iterator[bytes]:
        rows = response.outputs[TaskType.DENSE]
        for index, row in enumerate(rows):
            finite(row, index)
        return write(rows, vector_type(body))

    return replace(
        dialect,
        to_request=to_request,
        render=render,
        render_on_thread=True,
        own_headers=_shape_and_cuts,
        content_type=content_type,
        tells_cuts=True,
        by_accept={},
        by_body=None,
    )


def _shape_and_cuts(body: object, response: Response, info: ModelInfo) -> Headers:
    """What JSON would say beside the vectors: how many of what size, and the places of those that were cut."""
    shape = b"%d,%d" % response.outputs[TaskType.DENSE].shape
    return [(b"x-embedding-shape", shape), truncated_header(response)]
