"""What several dialects check alike of a body. Each error names the field as its client knows it, and the way out."""

from collections.abc import Sized

from msgspec import UnsetType

from rtp_llm.config import ServerConfig
from rtp_llm.core import ModelInfo
from rtp_llm.errors import InvalidRequest, RequestTooLarge


def check_inputs(inputs: Sized, config: ServerConfig, param: str, least: str = "one text") -> None:
    """InvalidRequest for no inputs at all, RequestTooLarge for more than a request may have."""
    if not len(inputs):
        raise InvalidRequest(f"{param} is an empty list: give at least {least}", param=param)
    check_count(len(inputs), config, param)


def check_count(count: int, config: ServerConfig, param: str) -> None:
    """RequestTooLarge for more inputs than a request may have."""
    limit = config.max_client_batch_size
    if count > limit:
        message = f"{count} inputs are over the limit of {limit} (max_client_batch_size): send fewer at a time"
        raise RequestTooLarge(message, param=param)


def check_least(value: int | UnsetType | None, least: int, param: str, *, without: str = "all") -> None:
    """InvalidRequest for a number below `least`; `without` is what there is where the field is left out."""
    if isinstance(value, int) and value < least:
        raise InvalidRequest(f"{param}: {value} is below {least}; leave it out for {without}", param=param)


def check_dimensions(dimensions: int | None, info: ModelInfo) -> None:
    """InvalidRequest unless `dimensions` lies between 1 and the model's own."""
    most = info.full_dimension or info.dimension
    if dimensions is not None and not 1 <= dimensions <= most:
        message = f"dimensions: {dimensions} is not between 1 and {most}, the model's own"
        raise InvalidRequest(message, param="dimensions")


def as_asked(dimensions: int | None, info: ModelInfo) -> int | None:
    """`dimensions`, or None where all are wanted and come unasked."""
    return None if dimensions == info.dimension and info.full_dimension is None else dimensions


def check_prompt_name(name: str | None, info: ModelInfo) -> None:
    """InvalidRequest for a prompt that the checkpoint does not have."""
    if name is not None and name not in info.prompts:
        known = ", ".join(info.prompts) or "none"
        raise InvalidRequest(f"prompt_name: {name!r:.100} is not one of {known}", param="prompt_name")


def max_tokens_of(truncate_prompt_tokens: int | None) -> int | None:
    """vLLM's word for how many tokens are kept of an input; -1 is the model's own limit."""
    if truncate_prompt_tokens is None or truncate_prompt_tokens == -1:
        return None
    if truncate_prompt_tokens < 1:
        name = "truncate_prompt_tokens"
        raise InvalidRequest(f"{name}: {truncate_prompt_tokens} is not -1, nor at least 1", param=name)
    return truncate_prompt_tokens
