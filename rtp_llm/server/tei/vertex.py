"""Google Vertex AI's form: several bodies of other routes in one, with the place, the time and the limits of one."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from rtp_llm.config import ServerConfig
from rtp_llm.core import Request, Whole
from rtp_llm.errors import CustomModuleError, DeadlineExceeded, EngineFailure, InvalidRequest, RequestTooLarge
from rtp_llm.server.admission import Admission
from rtp_llm.server.body import decode
from rtp_llm.server.catalog import Catalog, ModelName
from rtp_llm.server.checks import check_count
from rtp_llm.server.client_watch import too_late
from rtp_llm.server.cuts import HEADER, CutPlaces
from rtp_llm.server.errors import ErrorForm, Headers
from rtp_llm.server.exchange import JSON, Exchange
from rtp_llm.server.route import Answerer, Route, chosen
from rtp_llm.server.service import Service
from rtp_llm.server.tei import frame

_AT_A_TIME = 8  # instances: some steps full, and a bound on what waits in memory


class VertexBody(msgspec.Struct, kw_only=True):
    """Each instance is a body of any of the other routes."""

    instances: Annotated[
        list[msgspec.Raw], Meta(description="bodies of other routes", extra_json_schema={"items": {"type": "object"}})
    ]
    model: ModelName = None


class VertexAnswer(msgspec.Struct, kw_only=True):
    """The answers to the instances, in their order."""

    predictions: list[Any]


class _Shared(Admission):
    """The admission of the instances of one request, which has its place, and `seconds` for all: one count."""

    def __init__(self, config: ServerConfig, seconds: float) -> None:
        super().__init__(config)
        self.whole = Whole()
        self._seconds, self._deadline = seconds, time.monotonic() + seconds
        self._num_inputs = self._num_bytes = 0

    def check_room(self) -> None:
        """There is: the request's own."""

    async def enter(self) -> None:
        """The request has."""

    def leave(self) -> None:
        """The request will."""

    def seconds(self, headers: Mapping[bytes, bytes]) -> float:
        """What is left of the request's time."""
        return max(self._deadline - time.monotonic(), 0.0)

    def too_late(self) -> DeadlineExceeded:
        """What the client is told, who knows of the request's time alone."""
        return too_late(self._seconds)

    def check_size(self, request: Request, num_bytes: int, place: Callable[[int], str] = "input[{}]".format) -> None:
        """As ever, and the inputs of all instances count together."""
        self._num_inputs += len(request.inputs)
        check_count(self._num_inputs, self._config, "instances")
        super().check_size(request, num_bytes, place)

    def keep(self, answer: bytes) -> bytes:
        """The answer; RequestTooLarge where those of all instances take too much memory."""
        self._num_bytes += len(answer)
        most = self._config.max_answer_bytes
        if self._num_bytes > most:
            message = f"the answers to the instances are over {most} bytes (max_answer_bytes): send fewer at a time"
            raise RequestTooLarge(message, param="instances")
        return answer


@dataclass(frozen=True, slots=True)
class Vertex:
    """Every instance goes where `route` sends it; one that fails fails them all, as in TEI."""

    route: Route
    error_form: ErrorForm = frame.error_form
    decoder: "msgspec.json.Decoder[VertexBody]" = msgspec.json.Decoder(VertexBody)

    def choose(self, content: bytes, exchange: Exchange, catalog: Catalog) -> Answerer:
        """Itself."""
        return self

    async def answer(self, content: bytes, service: Service, exchange: Exchange) -> tuple[bytes, Headers]:
        """All instances' answers, of which some are worked on at a time."""
        instances = (await service.turns.call_by_size(len(content), decode, self.decoder, content)).instances
        frame.check_inputs(instances, service.config, "instances")
        seconds = service.admission.seconds(exchange.headers)
        shared = _Shared(service.config, seconds)
        work = partial(self._answers, instances, replace(service, admission=shared), exchange, shared)
        answers = await service.admitted(work, exchange.receive, seconds)
        content = b'{"predictions":[%b]}' % b",".join(answer for answer, _ in answers)
        return content, _cuts([headers for _, headers in answers])

    async def _answers(
        self, instances: list[msgspec.Raw], service: Service, exchange: Exchange, shared: _Shared
    ) -> list[tuple[bytes, Headers]]:
        room = asyncio.Semaphore(_AT_A_TIME)

        async def one(place: int) -> tuple[bytes, Headers]:
            async with room:
                answer, headers = await self._one(bytes(instances[place]), place, service, exchange, shared)
                return shared.keep(answer), headers

        tasks = [asyncio.ensure_future(one(place)) for place in range(len(instances))]
        try:
            return await asyncio.gather(*tasks)
        except Exception:
            shared.whole.end()  # the others are given up, but not by their client
            raise
        finally:
            for task in tasks:
                task.cancel()

    async def _one(
        self, body: bytes, place: int, service: Service, exchange: Exchange, shared: _Shared
    ) -> tuple[bytes, Headers]:
        part = exchange.part(shared.whole)
        try:
            answerer = await chosen(self.route, body, part, service)
            answer = await answerer.answer(body, service, part)
            if part.content_type != JSON:
                raise InvalidRequest("bytes are no JSON; leave the encoding_format out", param="encoding_format")
        except (InvalidRequest, EngineFailure, CustomModuleError) as error:
            where = f"instances[{place}]"
            error.message = f"{where}: {error.message}"
            error.param = f"{where}.{error.param}" if error.param else where
            raise
        except DeadlineExceeded:
            raise shared.too_late() from None
        finally:
            exchange.metrics = part.metrics
        return answer


def _cuts(answers: list[Headers]) -> Headers:
    """Of the headers of each instance's answer, the one that says what was cut; nothing where none was."""
    places = CutPlaces()
    for number, headers in enumerate(answers):
        told = dict(headers).get(HEADER.encode(), b"").decode()
        for place in told.split(",") if told else ():
            places.add(f"instances[{number}]" + (f"[{place}]" if place.isdigit() else f".{place}"))
    return [(HEADER.encode(), str(places).encode())] if places else []
