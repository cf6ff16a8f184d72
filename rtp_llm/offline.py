"""The library: a model without a server, on the same engine."""

import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from types import TracebackType
from typing import Any, Literal

import numpy as np

from rtp_llm import arguments
from rtp_llm.core import (
    AggregationStrategy,
    Chunking,
    FloatArray,
    Input,
    ModelInfo,
    Params,
    Request,
    Response,
    SparseVector,
    TaskType,
)
from rtp_llm.engine.loading import load_engine
from rtp_llm.entities import Entity
from rtp_llm.errors import InvalidInput, InvalidRequest, RequestTooLarge, UnsupportedTask
from rtp_llm.similarity import (
    KINDS,
    check_weights_go_with,
    hybrid,
    hybrid_weights,
    max_sim,
    scored_by,
    scoring_params,
    similarity,
)

# Inputs of one request, and about how many tokens: large enough that batches are full, small enough that a progress bar
# moves and that memory is bounded.
_SLICE = 256
_SLICE_TOKENS = 1 << 17
# Seconds for what is asked already when a model is closed, and what is told to whoever asks it afterwards.
_CLOSING = 30.0
_CLOSED = "this model is closed: load it anew"


@dataclass(frozen=True, slots=True)
class Ranked:
    """A document of `Model.rerank`, and its place among those that were given."""

    index: int
    score: float
    document: str


class Model:
    """A loaded checkpoint, with threads of its own, until `close` or until nobody has it any more.

    A process that is forked afterwards has none of them, and is told so: load the model there, or spawn it.

    >>> model = Model("BAAI/bge-small-en-v1.5")
    >>> model.embed(["a text", "another"]).shape
    (2, 384)
    """

    def __init__(self, checkpoint_path: str | PathLike[str], **options: Any) -> None:
        """`options` are the fields of EngineConfig (docs/flags.md), e.g. `num_threads=4`."""
        config = arguments.options(checkpoint_path, options)
        self._engine = load_engine(config, config.model_name)
        self._num_truncated, self._counting = 0, threading.Lock()
        # The engine's threads would keep it, and all weights, when nobody has the model any more.
        self._dropped = weakref.finalize(self, self._engine.close, 0.0)
        self._dropped.atexit = False

    @property
    def info(self) -> ModelInfo:
        """What is loaded, and its limits."""
        return self._engine.info()

    @property
    def num_truncated(self) -> int:
        """How many inputs have been cut at the limit since the model was loaded, a query among them."""
        return self._num_truncated

    def embed(
        self,
        inputs: Input | Iterable[Input],
        *,
        dimensions: int | None = None,
        normalize: bool | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        adapter: str | None = None,
        truncate: bool = True,
        chunking: Chunking | None = None,
        extra: Mapping[str, Any] | None = None,
        progress: bool = False,
    ) -> FloatArray:
        """Texts, pairs or lists of token ids -> fp32 [n, dim]; one str -> [dim]. See core.Params for the options.

        Any iterable will do: an array or a column of strings, a generator. InvalidRequest says what is not readable.
        """
        params = arguments.params(
            dimensions=dimensions,
            normalize=normalize,
            prompt=prompt,
            prompt_name=prompt_name,
            adapter=adapter,
            truncate=truncate,
            chunking=chunking,
            extra=extra or {},
        )
        rows = self._run(inputs, (TaskType.DENSE,), params, progress)[TaskType.DENSE]
        matrix = np.stack(rows) if rows else np.zeros((0, dimensions or self.info.dimension), np.float32)
        return matrix[0] if isinstance(inputs, str) else matrix

    def embed_sparse(self, inputs: Iterable[Input], *, progress: bool = False, **params: Any) -> list[SparseVector]:
        """-> weights by token id, as BGE-M3 and SPLADE give them. `params`: fields of core.Params, e.g. return_tokens.

        Of a Router, `prompt_name` says the route: "query", "document"; its absence, the checkpoint's default.
        """
        return self._run(inputs, (TaskType.SPARSE,), arguments.params(**params), progress)[TaskType.SPARSE]

    def embed_colbert(self, inputs: Iterable[Input], *, progress: bool = False, **params: Any) -> list[FloatArray]:
        """-> fp32 [tokens, dim] an input: those that the checkpoint compares, which of BGE-M3 are all but the first.

        Of late interaction, `prompt_name="query"` asks for queries' vectors, and its absence for documents'. `params`:
        fields of core.Params.
        """
        return self._run(inputs, (TaskType.COLBERT,), arguments.params(**params), progress)[TaskType.COLBERT]

    def embed_all(
        self, inputs: Iterable[Input], *, kinds: Iterable[str] | None = None, progress: bool = False, **params: Any
    ) -> dict[str, list[Any]]:
        """-> the `kinds` asked for, else all that the checkpoint offers (dense, sparse, colbert), from one forward.

        `tokens`, the tokens' hidden states, come where they are asked for, or all that the checkpoint was loaded for.
        """
        if kinds is None:
            tasks = tuple(task for task in self.info.tasks if task in KINDS) or (TaskType.TOKENS,)
        else:
            names = [kind.value for kind in (*KINDS, TaskType.TOKENS)]
            tasks = tuple(TaskType(arguments.choice(kind, names, "kinds")) for kind in arguments.texts(kinds, "kinds"))
        return {
            task.value: rows for task, rows in self._run(inputs, tasks, arguments.params(**params), progress).items()
        }

    def rerank(
        self, query: str, documents: Iterable[str], *, top_k: int | None = None, progress: bool = False, **params: Any
    ) -> list[Ranked]:
        """The documents, best first; scores as the checkpoint's CrossEncoder gives them, or as `activation` says.

        Of a model that is no reranker: MaxSim of its tokens' vectors, as `similarity` of kind colbert has it, else the
        cosine of its dense ones. UnsupportedTask where it has neither.
        """
        query, documents = arguments.text(query, "query"), arguments.texts(documents, "documents")
        top_k = arguments.count(top_k, "top_k")
        wanted = arguments.params(**params)
        scores: Sequence[float]
        kind = scored_by(self.info.tasks)
        if kind is TaskType.RERANK:
            pairs = [(query, document) for document in documents]
            scores = self._run(pairs, (kind,), wanted, progress)[kind]
        else:
            scores = self._compared_with(query, documents, kind, wanted, progress)
        order = sorted(range(len(documents)), key=lambda index: -scores[index])
        return [Ranked(index, float(scores[index]), documents[index]) for index in order[:top_k]]

    def classify(self, inputs: Iterable[Input], *, progress: bool = False, **params: Any) -> FloatArray:
        """Texts or pairs -> fp32 [n, labels]: scores as transformers' pipeline gives them, or as `activation` says.

        `info.labels` names the columns. UnsupportedTask where the model labels tokens: `entities`, `classify_tokens`.
        """
        if TaskType.TOKEN_CLASSIFY in self.info.tasks:
            raise UnsupportedTask("this model labels tokens, not whole texts: ask for entities, or classify_tokens")
        rows = self._run(inputs, (TaskType.CLASSIFY,), arguments.params(**params), progress)[TaskType.CLASSIFY]
        return np.stack(rows) if rows else np.zeros((0, len(self.info.labels)), np.float32)

    def classify_tokens(self, inputs: Iterable[Input], *, progress: bool = False, **params: Any) -> list[FloatArray]:
        """-> fp32 [tokens, labels] an input, special tokens included: softmax's scores, or as `activation` says."""
        task = TaskType.TOKEN_CLASSIFY
        return self._run(inputs, (task,), arguments.params(**params), progress)[task]

    def entities(
        self,
        texts: str | Iterable[str],
        *,
        aggregation_strategy: AggregationStrategy = "simple",
        ignore_labels: Iterable[str] = ("O",),
        progress: bool = False,
        **params: Any,
    ) -> list[list[Entity]]:
        """What a token classifier finds in each text, as transformers' pipeline gives it: rtp_llm/entities.py.

        Of a text over the limit only what was read has entities; `truncate=False` makes it an error, and `stride=N` has
        it read in windows that overlap by N tokens.
        """
        ignored = tuple(arguments.texts(ignore_labels, "ignore_labels"))
        wanted = arguments.params(aggregation_strategy=aggregation_strategy, ignore_labels=ignored, **params)
        task = TaskType.TOKEN_CLASSIFY
        return self._run(arguments.texts(texts, "texts"), (task,), wanted, progress)[task]

    def custom(self, inputs: Input | Iterable[Input], *, params: Params | None = None, **extra: Any) -> Any:
        """What the class of `custom_module` makes of all inputs together; `extra` is the request's own: top_k=3."""
        wanted = replace(params or Params(), extra=extra)
        request = Request(inputs=arguments.inputs(inputs), tasks=(TaskType.CUSTOM,), params=wanted)
        return self._counted(self._engine.run_sync(request)).outputs[TaskType.CUSTOM]

    def similarity(
        self,
        left: Iterable[Input],
        right: Iterable[Input],
        *,
        kind: Literal["dense", "sparse", "colbert", "hybrid"] = "dense",
        weights: Sequence[float] | None = None,
        **params: Any,
    ) -> FloatArray:
        """-> fp32 [left, right]: dot products, cosines where vectors have length 1 as `normalize=True` makes them.

        hybrid: the mean of dense, sparse and colbert by `weights`, 1 each if absent.
        """
        weights = arguments.numbers(weights, "weights")
        check_weights_go_with(kind, weights)
        if kind == "hybrid":
            chosen = hybrid_weights(weights, self.info.tasks)
        else:
            names = [*(one.value for one in KINDS), "hybrid"]
            chosen = {TaskType(arguments.choice(kind, names, "kind")): 1.0}
        left, right = arguments.inputs(left, "left"), arguments.inputs(right, "right")
        if not left or not right:
            return np.zeros((len(left), len(right)), np.float32)
        wanted = arguments.params(**params)
        lefts, rights = self._sides(left, right, tuple(chosen), wanted, progress=False)
        return hybrid({task: self._compared(task, lefts[task], rights[task]) for task in chosen}, chosen)

    def close(self) -> None:
        """End the engine's threads, at once where nothing is asked of them.

        What other threads have asked gets 30 seconds; they, and whoever asks later, get NotReady then.
        """
        self._close(_CLOSING)

    def __enter__(self) -> "Model":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Whoever was interrupted, or has met an error, does not want what is still to be computed.
        self._close(_CLOSING if error is None else 0.0)

    def _close(self, timeout: float) -> None:
        self._dropped.detach()
        self._engine.close(timeout, _CLOSED)

    def _compared_with(
        self, query: str, documents: list[str], kind: TaskType, params: Params, progress: bool
    ) -> list[float]:
        """A score for each document; InvalidRequest for an activation, which they have none of."""
        if params.activation not in (None, "none"):
            message = f"activation: {params.activation!r}; the similarity of {kind.value} vectors has none"
            raise InvalidRequest(message, param="activation")
        if not documents:
            return []
        wanted = scoring_params(kind, params, num_queries=1)
        queries, others = self._sides([query], documents, (kind,), wanted, progress)
        scores: list[float] = self._compared(kind, queries[kind], others[kind])[0].tolist()
        return scores

    def _compared(self, task: TaskType, left: list[Any], right: list[Any]) -> FloatArray:
        """Outputs of a task -> [left, right], a MaxSim as the checkpoint has it."""
        if task is TaskType.DENSE:
            return similarity(task, np.stack(left), np.stack(right))
        scores = similarity(task, left, right)
        return max_sim(scores, left, self.info.max_sim) if task is TaskType.COLBERT else scores

    def _sides(
        self, left: Sequence[Input], right: Sequence[Input], tasks: tuple[TaskType, ...], params: Params, progress: bool
    ) -> tuple[dict[TaskType, list[Any]], dict[TaskType, list[Any]]]:
        """Of queries, and of what they are compared with, the outputs of each task."""
        queries, others = replace(params, num_queries=len(left)), replace(params, num_queries=0)
        return self._run(left, tasks, queries, False), self._run(right, tasks, others, progress)

    def _run(
        self, inputs: Input | Iterable[Input], tasks: tuple[TaskType, ...], params: Params, progress: bool
    ) -> dict[TaskType, list[Any]]:
        """Per task, an output for each input."""
        outputs: dict[TaskType, list[Any]] = {task: [] for task in tasks}
        for response in self._responses(arguments.inputs(inputs), tasks, params, progress):
            for task, rows in self._counted(response).outputs.items():
                outputs[task] += list(rows)
        return outputs

    def _counted(self, response: Response) -> Response:
        with self._counting:
            self._num_truncated += sum(response.truncated)
        return response

    def _responses(
        self, inputs: Sequence[Any], tasks: tuple[TaskType, ...], params: Params, progress: bool
    ) -> Iterator[Response]:
        if not progress:
            yield from self._sliced(inputs, tasks, params)
            return
        from tqdm import tqdm

        with tqdm(total=len(inputs), unit="text") as bar:
            for response in self._sliced(inputs, tasks, params):
                bar.update(len(response.num_tokens))
                yield response

    def _sliced(self, inputs: Sequence[Any], tasks: tuple[TaskType, ...], params: Params) -> Iterator[Response]:
        """In requests that no limit is meant for; one that has more tokens than was thought is asked in halves."""
        estimate, most_tokens = self._engine.estimate(params), self._engine.config.max_request_tokens
        done, size = 0, min(_SLICE, max(most_tokens // estimate.max_seq_len, 1))

        def stop_of(start: int) -> int:
            return estimate.end_of_part(inputs, start, size, max_tokens=_SLICE_TOKENS)

        def requests() -> Iterator[Request]:
            start = done
            while start < len(inputs):
                stop = stop_of(start)
                yield Request(inputs=inputs[start:stop], tasks=tasks, params=params)
                start = stop

        while done < len(inputs):
            try:
                for response in self._engine.run_many(requests()):
                    done += len(response.num_tokens)
                    yield response
            except RequestTooLarge:
                size = (stop_of(done) - done) // 2
                if size == 0 or estimate.chunking == "late":
                    raise
            except InvalidInput as error:
                raise error.of(done + error.index) from None
