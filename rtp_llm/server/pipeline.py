"""Requests that a client sends on one connection before the first of them is answered: how many are taken in."""

import asyncio
from collections.abc import Sized

from uvicorn.protocols.http.flow_control import FlowControl

# Requests of one connection that wait for the answer to an earlier one; where there are as many, no more are read.
MOST_PIPELINED = 16
_END_OF_HEAD = b"\r\n\r\n"


class ReadAhead:
    """What has come of a connection and is not parsed yet: one read may have thousands of requests."""

    def __init__(self) -> None:
        self._data, self._start = b"", 0

    def __bool__(self) -> bool:
        return self._start < len(self._data)

    def add(self, data: bytes) -> None:
        """What has come now, behind what is left."""
        self._data, self._start = self._data[self._start :] + data, 0

    def take(self, most: int) -> bytes:
        """The next part, in which at most so many heads end."""
        start = end = self._start
        for _ in range(most):
            found = self._data.find(_END_OF_HEAD, end)
            if found < 0:
                end = len(self._data)
                break
            end = found + len(_END_OF_HEAD)
        self._start = end
        part = self._data[start:end]
        if not self:
            self.clear()
        return part

    def clear(self) -> None:
        """What is left will not be parsed."""
        self._data, self._start = b"", 0


class PipelineFlow(FlowControl):
    """Reads on only while few requests wait in the `pipeline`, and none in what is `ahead`.

    uvicorn itself reads on with each answer: a client that sends faster than it is answered would fill the memory.
    """

    def __init__(self, transport: asyncio.Transport, pipeline: Sized, ahead: ReadAhead) -> None:
        super().__init__(transport)
        self._pipeline = pipeline
        self._ahead = ahead

    def resume_reading(self) -> None:
        if len(self._pipeline) < MOST_PIPELINED and not self._ahead:
            super().resume_reading()
