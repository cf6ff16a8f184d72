"""grpc.health.v1: whether a service can answer, as orchestrators and clients that balance their load ask."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rtp_llm.core import TaskType
from rtp_llm.errors import NotReady
from rtp_llm.server.catalog import Catalog, one_of

_LOOK_AGAIN = 1.0  # seconds between two looks of a Watch
# What a service needs one of, in any model; the others serve every model.
_NEEDED = {
    "tei.v1.Embed": {TaskType.DENSE, TaskType.SPARSE, TaskType.TOKENS},
    "tei.v1.Predict": {TaskType.CLASSIFY, TaskType.RERANK},
    "tei.v1.Rerank": {TaskType.RERANK, TaskType.COLBERT},
}


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """The server's health under the name "", and that of each of `services`; `leaving` ends what watches."""

    def __init__(self, catalog: Catalog, services: set[str], leaving: asyncio.Event) -> None:
        self._catalog = catalog
        self._services = services
        self._leaving = leaving

    async def Check(self, request: Any, context: Any) -> Any:
        """The status now; NOT_FOUND for a service that there is not."""
        status = self._status(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service is called {request.service[:100]!r}")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """The status now, and whenever it changes."""
        last = None
        while True:
            status = self._status(request.service)
            if status != last:
                yield health_pb2.HealthCheckResponse(status=status)
                last = status
            if self._leaving.is_set():
                return
            try:
                await asyncio.wait_for(self._leaving.wait(), _LOOK_AGAIN)
            except asyncio.TimeoutError:
                continue

    def _status(self, service: str) -> int:
        statuses = health_pb2.HealthCheckResponse
        if service and service not in self._services:
            return int(statuses.SERVICE_UNKNOWN)
        try:
            self._catalog.check_health()
            needed = _NEEDED.get(service)
            serves = not self._leaving.is_set() and (not needed or bool(self._catalog.able(one_of(*needed))))
        except NotReady:
            serves = False
        return int(statuses.SERVING if serves else statuses.NOT_SERVING)
