"""An adapter (LoRA) that callers know as a model of its own, as vLLM has it: `--lora_modules NAME=FOLDER`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rtp_llm.core import ModelInfo, Request, Response
from rtp_llm.observability import RequestMetrics, Waiting
from rtp_llm.server.engine_like import EngineLike, Part


def adapter_models(engine: EngineLike) -> "list[AdapterModel]":
    """Those that a loaded model has."""
    return [AdapterModel(engine, name) for name in engine.info().lora_modules]


class AdapterModel:
    """EngineLike: the engine that has the adapter, each of whose requests is computed with it."""

    def __init__(self, engine: EngineLike, name: str) -> None:
        self._engine = engine
        self._info = of_adapter(engine.info(), name)

    @property
    def metrics(self) -> RequestMetrics:
        """Those of the model that has the adapter."""
        return self._engine.metrics

    def info(self) -> ModelInfo:
        """As a model that was loaded with this adapter alone."""
        return self._info

    def check_health(self) -> None:
        """As EngineLike."""
        self._engine.check_health()

    async def run(self, request: Request) -> Response:
        """As EngineLike."""
        params = replace(request.params, adapter=self._info.name)
        return await self._engine.run(replace(request, params=params))

    async def waiting(self) -> Waiting:
        """What has no answer yet, whatever adapter it is for."""
        return await self._engine.waiting()

    def token_parts(self, text: str, *, add_special_tokens: bool = True) -> Iterator[Part]:
        """As EngineLike."""
        return self._engine.token_parts(text, add_special_tokens=add_special_tokens)

    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        """As EngineLike."""
        return self._engine.decode(ids, skip_special_tokens=skip_special_tokens)

    def prompt(self, name: str) -> str:
        """As EngineLike."""
        return self._engine.prompt(name)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """As EngineLike."""
        return self._engine.chat(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables=variables,
        )


def of_adapter(info: ModelInfo, name: str) -> ModelInfo:
    """What callers are told of this adapter of a model; the weights are told with that."""
    own = replace(info, name=name, parent=info.name, aliases=(), weight_bytes=0, memory_bytes=0)
    return replace(own, merged_adapter=name, adapters=(), lora_modules=())
