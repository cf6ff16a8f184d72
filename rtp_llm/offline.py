"""The library: a model without a server, on the same engine."""

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from rtp_llm.config import ServerConfig
from rtp_llm.core import FloatArray, Input, ModelInfo, Params, Request, Response, TaskType
from rtp_llm.engine.loading import load_engine

# Inputs of one request: large enough that batches are full, small enough that a progress bar moves.
_SLICE = 256


class Model:
    """A loaded checkpoint.

    >>> model = Model("BAAI/bge-small-en-v1.5")
    >>> model.embed(["a text", "another"]).shape
    (2, 384)
    """

    def __init__(self, checkpoint_path: str, **options: Any) -> None:
        """`options` are the fields of EngineConfig (docs/flags.md), e.g. `num_threads=4`."""
        config = ServerConfig(checkpoint_path=checkpoint_path, **options)
        self._engine = load_engine(config, config.model_name)

    @property
    def info(self) -> ModelInfo:
        """What is loaded, and its limits."""
        return self._engine.info()

    def embed(
        self,
        inputs: Input | Sequence[Input],
        *,
        dimensions: int | None = None,
        normalize: bool | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncate: bool = True,
        progress: bool = False,
    ) -> FloatArray:
        """Texts, pairs or lists of token ids -> fp32 [n, dim]; one str -> [dim]. See core.Params for the options."""
        single = isinstance(inputs, str)
        params = Params(
            dimensions=dimensions, normalize=normalize, prompt=prompt, prompt_name=prompt_name, truncate=truncate
        )
        responses = self._run([inputs] if single else inputs, params, progress)
        rows = [response.outputs[TaskType.DENSE] for response in responses]
        matrix = np.concatenate(rows) if rows else np.zeros((0, dimensions or self.info.dimension), np.float32)
        return matrix[0] if single else matrix

    def close(self) -> None:
        """End the engine's threads."""
        self._engine.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, inputs: Sequence[Any], params: Params, progress: bool) -> Iterator[Response]:
        slices = (inputs[start : start + _SLICE] for start in range(0, len(inputs), _SLICE))
        requests = (Request(inputs=part, params=params) for part in slices)
        if not progress:
            yield from self._engine.run_many(requests)
            return
        from tqdm import tqdm

        with tqdm(total=len(inputs), unit="text") as bar:
            for response in self._engine.run_many(requests):
                bar.update(len(response.num_tokens))
                yield response
