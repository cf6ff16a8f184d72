"""Everything that can go wrong, as one tree; the class knows the HTTP status and the field's word for it.

RtpError
├── InvalidRequest        400   the body cannot be served as it is
│   ├── InvalidInput      400   one of the inputs; a dialect says by which of its fields it came
│   │   ├── InputTooLong  400   it has more tokens than the model reads, and may not be cut
│   │   └── InputTooLarge 413   it is over a size limit
│   ├── ContextLengthExceeded  400   that, by the field's own name
│   ├── UnsupportedTask   400   this checkpoint does not do that
│   └── UnknownModel      404   no model of that name
├── Unauthorized          401   no API key, or a wrong one
├── RequestTooLarge       413   over a size limit
├── Overloaded            429   the queue is full; come back after `retry_after`
├── DeadlineExceeded      504   the work expired before it was done
├── NotReady              503   starting, draining, or dead
├── EngineFailure         500   our own fault, on an input that was in order
├── CustomModuleError     500   the fault of a user's module; the message names its file and line
└── ConfigError           exit  a flag or a checkpoint that cannot be started with
    └── CheckpointError   exit  a folder or file of the checkpoint is missing, malformed or unsafe

DeviceLost stands beside the tree: nothing can be computed any more.
"""

import math
from typing import Any, ClassVar


class RtpError(Exception):
    """Base of all errors that a user may see: `status` for HTTP, `kind` and `code` for the error object."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own would call the class with its message, which not every class here takes: a worker process that
        # fails with one of those would never be heard of again.
        return _restored, (type(self), self.args), self.__dict__

    @property
    def failure(self) -> str:
        """The word for it where the request was in order; empty where the request was at fault."""
        return (self.code or self.kind) if self.status >= 500 else ""


def _restored(kind: type[RtpError], args: tuple[Any, ...]) -> RtpError:
    """An error that was pickled or copied, as yet without its attributes."""
    return kind.__new__(kind, *args)


class InvalidRequest(RtpError):
    """The request cannot be served as it is; the message says what to change."""

    status = 400
    kind = "invalid_request_error"


class InvalidInput(InvalidRequest):
    """One input cannot be read. The message is its name and `problem`, in which `CUT` is what would have it cut."""

    CUT = "{cut}"
    elsewhere: ClassVar[type[InvalidRequest]] = InvalidRequest

    def __init__(self, index: int, problem: str) -> None:
        super().__init__(f"input {index}{problem.replace(self.CUT, 'truncate to true')}", param="input")
        self.index = index
        self.problem = problem

    def of(self, index: int) -> "InvalidInput":
        """The same of the input at another place."""
        return type(self)(index, self.problem)

    def at(self, place: str, cut: str) -> InvalidRequest:
        """The same under the name that the request's own fields give it."""
        return self.elsewhere(f"{place}{self.problem.replace(self.CUT, cut)}", param=place)


class ContextLengthExceeded(InvalidRequest):
    """A text has more tokens than the model reads, and the request does not let it be cut."""

    code = "context_length_exceeded"  # OpenAI's


class InputTooLong(InvalidInput):
    """One input has more tokens than the model reads, and the request does not let it be cut."""

    code = ContextLengthExceeded.code
    elsewhere = ContextLengthExceeded


class UnsupportedTask(InvalidRequest):
    """The loaded checkpoint has no head for the task that was asked for."""

    code = "unsupported_task"


class UnknownModel(InvalidRequest):
    """No loaded model has the requested name."""

    status = 404
    code = "model_not_found"


class Unauthorized(RtpError):
    """The server wants an API key, and this request has none that it knows."""

    status = 401
    kind = "authentication_error"
    code = "invalid_api_key"


class RequestTooLarge(InvalidRequest):
    """A body, a batch or a text is over a limit."""

    status = 413
    code = "request_too_large"


class InputTooLarge(InvalidInput):
    """One input is over a size limit."""

    status = RequestTooLarge.status
    code = RequestTooLarge.code
    elsewhere = RequestTooLarge


def one_line(text: object) -> str:
    """Text as it stands in a message that is one line: every run of white space is a space."""
    return " ".join(str(text).split())


def in_one_line(error: BaseException) -> str:
    """The name of a library's error and its text."""
    return one_line(f"{type(error).__name__}: {error}")


def whole_seconds(wait: float) -> int:
    """A wait as clients are told of it: whole seconds, at least one, never too few."""
    return max(1, math.ceil(wait))


class Overloaded(RtpError):
    """The queue is full. `retry_after` is in seconds."""

    status = 429
    kind = "rate_limit_error"
    code = "overloaded"

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineExceeded(RtpError):
    """The request's work was not done by its deadline, or would not have been."""

    status = 504
    kind = "timeout_error"
    code = "deadline_exceeded"


class NotReady(RtpError):
    """The engine is starting, draining or dead."""

    status = 503
    code = "not_ready"


class EngineFailure(RtpError):
    """The computation failed on an input that was in order."""

    code = "engine_failure"


class CustomModuleError(RtpError):
    """A module that the operator supplied failed on a request; the message names its file and line."""

    code = "custom_module_error"


class ConfigError(RtpError):
    """A flag, an environment variable or a combination of them that cannot be started with."""

    kind = "config_error"


class CheckpointError(ConfigError):
    """A checkpoint folder or file that is missing, malformed or unsafe."""

    kind = "checkpoint_error"


class DeviceLost(BaseException):
    """A device or a process that holds a part of the model has failed for good.

    NOTE: not an Exception, so that the batch is not tried again: it ends the batch thread, and with it the server.
    """
