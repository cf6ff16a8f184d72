"""The gRPC server: tei.v1, health and reflection on one port, on the event loop that HTTP runs on."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from rtp_llm.config import ServerConfig
from rtp_llm.errors import ConfigError, Unauthorized
from rtp_llm.observability import Observer
from rtp_llm.server.admission import Admission
from rtp_llm.server.auth import KeyRing
from rtp_llm.server.catalog import Catalog
from rtp_llm.server.engine_like import EngineLike
from rtp_llm.server.grpc import tei
from rtp_llm.server.grpc.calls import Answer, Calls, Reply
from rtp_llm.server.grpc.health import Health
from rtp_llm.server.grpc.metadata import as_headers
from rtp_llm.server.grpc.proto import Message, pool, services
from rtp_llm.server.grpc.statuses import Context
from rtp_llm.server.listening import in_url
from rtp_llm.server.tls import read_certificate
from rtp_llm.server.turns import Turns

_STREAM = "Stream"
_LAST_WORD = 1.0  # seconds in which RPCs that are cut off can say so
# What load balancers ask, and what tools like grpcurl read first; they tell nothing of the model.
_OPEN = ("/grpc.health.v1.Health/", "/grpc.reflection.")


class GrpcServer:
    """One server's RPCs; made, started and stopped on the event loop."""

    def __init__(
        self,
        catalog: Catalog,
        config: ServerConfig,
        admission: Admission,
        keys: KeyRing,
        turns: Turns,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._catalog = catalog
        self._config = config
        self._calls = Calls(catalog, config, admission, turns, observers)
        options = [
            ("grpc.max_receive_message_length", config.max_body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # a port that is taken is an error, not half of the connections
        ]
        self._server = grpc.aio.server(interceptors=[_KeyCheck(keys, self._calls)], options=options)
        self._register()

    def bind(self, port: int) -> int:
        """Have a port of `config.host` -> it, which the system chooses for 0; ConfigError where it is taken."""
        address = f"{in_url(self._config.host)}:{port}"
        try:
            if self._config.ssl_certfile:
                credentials = grpc.ssl_server_credentials([read_certificate(self._config)])
                bound: int = self._server.add_secure_port(address, credentials)
            else:
                bound = self._server.add_insecure_port(address)
        except RuntimeError:
            message = f"gRPC cannot listen on {address}; choose another with --host or --grpc_port"
            raise ConfigError(message, param="grpc_port") from None
        return bound

    async def start(self) -> None:
        """Answer whoever connects to the port, or has connected since it was bound."""
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Refuse new RPCs, let running ones end for at most `grace` seconds; idle streams end at once."""
        self._calls.leaving.set()
        stopping = asyncio.ensure_future(self._server.stop(grace + _LAST_WORD))
        done, _ = await asyncio.wait({stopping}, timeout=grace)
        if not done:
            self._calls.end()
        await stopping

    def _register(self) -> None:
        own = services()
        for name, service in own.items():
            handlers = {method.name: self._handler(service.name, method) for method in service.methods}
            self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(name, handlers)])
        health = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        servicer = Health(self._catalog, {*own, health}, self._calls.leaving)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, self._server)
        names = (*own, health, reflection.SERVICE_NAME)
        for file in (health_pb2, reflection_pb2):
            pool().AddSerializedFile(file.DESCRIPTOR.serialized_pb)
        reflection.enable_server_reflection(names, self._server, pool=pool())

    def _handler(self, service: str, method: Any) -> Any:
        """By the method's descriptor: bytes in, messages out."""
        path, body_type = f"/{method.containing_service.full_name}/{method.name}", method.input_type.name
        serialize = {"response_serializer": _serialize}
        if method.client_streaming and not method.server_streaming:
            return grpc.stream_unary_rpc_method_handler(self._calls.ranking(path), **serialize)
        answer = self._answer(service, method.name.removesuffix(_STREAM), body_type, patient=method.server_streaming)
        if method.server_streaming:
            return grpc.stream_stream_rpc_method_handler(self._calls.stream(path, answer), **serialize)
        return grpc.unary_unary_rpc_method_handler(self._calls.unary(path, answer), **serialize)

    def _answer(self, service: str, name: str, body_type: str, *, patient: bool) -> Answer[Reply]:
        inference = tei.INFERENCES.get(f"{service}/{name}")
        if inference is not None:
            return self._calls.inference(inference, body_type, patient=patient)
        direct: dict[str, Callable[[Message, EngineLike], Iterator[bytes]]] = {
            "Info": lambda _, engine: iter([_serialize(tei.describe(engine, self._config))]),
            "Tokenize": tei.tokenize,
            "Decode": tei.decode,
        }
        return self._calls.direct(direct[name], body_type, patient=patient)


class _KeyCheck(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses what carries no API key, before its messages are read."""

    def __init__(self, keys: KeyRing, calls: Calls) -> None:
        self._keys = keys
        self._calls = calls

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """The handler of the RPC, or one that refuses it."""
        if details.method.startswith(_OPEN):
            return await continuation(details)
        try:
            self._keys.check_key(as_headers(details.invocation_metadata))
        except Unauthorized as error:
            return self._refuse(error)
        return await continuation(details)

    def _refuse(self, error: Unauthorized) -> Any:
        async def handle(received: Any, context: Context) -> None:
            async with self._calls.border("unauthenticated", context):
                raise error

        # A handler of streams serves any client, and does not wait for a first message.
        return grpc.stream_stream_rpc_method_handler(handle)


def _serialize(reply: Message | bytes) -> bytes:
    content: bytes = reply if isinstance(reply, bytes) else reply.SerializeToString()
    return content
