"""What every answer is made with."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive

from rtp_llm.config import ServerConfig
from rtp_llm.server.admission import Admission
from rtp_llm.server.catalog import Catalog
from rtp_llm.server.client_watch import Result, unless_client_leaves
from rtp_llm.server.turns import Turns


@dataclass(frozen=True, slots=True)
class Service:
    """The models, the limits, and the thread for what takes long."""

    catalog: Catalog
    config: ServerConfig
    admission: Admission
    turns: Turns

    async def admitted(
        self, work: Callable[[], Coroutine[Any, Any, Result]], receive: Receive, seconds: float
    ) -> Result:
        """What `work` comes to, in a place among those in flight: Overloaded where there is none.

        ClientLeft and DeadlineExceeded as `unless_client_leaves` raises them.
        """
        await self.admission.enter()
        try:
            return await unless_client_leaves(work(), receive, seconds)
        finally:
            self.admission.leave()
