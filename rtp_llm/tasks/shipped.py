"""Dense embeddings of a chain with modules of the checkpoint's own, as modules.json names them by `file.Class`.

Such a class is one of sentence-transformers: `load`, and `forward` from features to features. It is run on each input
alone, without padding: `token_embeddings` [1, tokens, H], `attention_mask` and `input_ids` [1, tokens], `input_lengths`
[1], `all_layer_embeddings` where config.json has `output_hidden_states`; torch tensors for a torch.nn.Module, numpy
arrays for anything else. What a module names in its `kwargs` comes from the request's `extra`.
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from rtp_llm.checkpoint import inside
from rtp_llm.core import Batch, FloatArray, Int32Array, Item, Params, Reads, Rows, pack
from rtp_llm.errors import CheckpointError
from rtp_llm.modules import Module
from rtp_llm.ops import Ops, Tensor
from rtp_llm.ops.numpy_ops import NumpyOps
from rtp_llm.tasks import Task, TaskSource
from rtp_llm.tasks.dense import load_pooling, load_stage
from rtp_llm.tasks.finishing import check_dimensions, own_truncate_dim, slice_and_normalize
from rtp_llm.tasks.plain import as_array
from rtp_llm.tasks.user_code import line_of, line_of_return, load_class, loading, running

Features: TypeAlias = dict[str, Any]
# What stands around the call of a user's code: `running` in a request, `loading` while a server starts.
Guard: TypeAlias = Callable[[Path, int | None], AbstractContextManager[None]]
Step: TypeAlias = Callable[[Features, Mapping[str, Any], Guard], Features]

_VECTOR = "sentence_embedding"
_TRIAL_TOKENS = 3


class Shipped(Task):
    """`steps` take the features of one input to its vector; they run beside the device, in `finish`."""

    per_token = True
    reads: Reads = "all"
    full_dimension: int

    def __init__(
        self,
        steps: Sequence[Step],
        dimension: int,
        layers: tuple[int, ...],
        *,
        normalizes: bool,
        truncate_dim: int | None = None,
    ) -> None:
        self.steps = steps
        self.dimension = truncate_dim or dimension
        self.full_dimension = dimension
        self.truncate_dim = truncate_dim
        self.hidden_layers = layers
        self.normalizes = normalizes

    @classmethod
    def load(cls, source: TaskSource) -> "Shipped":
        """The chain, tried on random hidden states; CheckpointError where it needs trust that was not given."""
        config = source.model_config
        chain = [module for module in config.modules or () if module.kind != "Dropout" or module.code]
        if not source.trust_remote_code:
            raise _untrusted(config.folder, [module for module in chain if module.code])
        normalizes = chain[-1].kind == "Normalize" and not chain[-1].code
        while chain[-1].kind == "Normalize" and not chain[-1].code:
            chain.pop()
        every = bool(config.hf.get("output_hidden_states"))
        layers = tuple(range(source.num_layers + 1)) if every else ()
        random = np.random.default_rng(0).standard_normal((_TRIAL_TOKENS, source.hidden_size * max(1, len(layers))))
        features = _features(random.astype(np.float32), np.zeros(_TRIAL_TOKENS, np.int32), len(layers))
        steps = []
        for module in chain:
            step = _load_step(config.folder, module, features)
            features = step(features, {}, loading)
            steps.append(step)
        dimension = _vector(features, config.folder).shape[1]
        own = own_truncate_dim(config, dimension)
        return cls(steps, dimension, layers, normalizes=normalizes, truncate_dim=own)

    def __call__(self, ops: Ops, hidden_states: Tensor, batch: Batch) -> Tensor:
        """[T, H] -> the same."""
        return hidden_states

    def check(self, params: Params) -> None:
        """`dimensions` must lie in 1..full_dimension."""
        check_dimensions(params, self.full_dimension)

    def finish(self, rows: Rows, params: Params, input_ids: Sequence[Int32Array]) -> FloatArray:
        """Each input through the steps, then sliced and normalised as the request says -> [n, dimensions]."""
        vectors = [self._run(states, ids, params.extra) for states, ids in zip(rows, input_ids, strict=True)]
        matrix = np.concatenate(vectors)
        return slice_and_normalize(matrix, params, normalizes=self.normalizes, truncate_dim=self.truncate_dim)

    def _run(self, hidden_states: FloatArray, input_ids: Int32Array, extra: Mapping[str, Any]) -> FloatArray:
        features = _features(hidden_states, input_ids, len(self.hidden_layers))
        for step in self.steps:
            features = step(features, extra, running)
        return _vector(features, Path("modules.json"))


def _untrusted(folder: Path, modules: Sequence[Module]) -> CheckpointError:
    named = ", ".join(f"{module.code} ({_file_of(module)})" for module in modules)
    return CheckpointError(
        f"{folder / 'modules.json'}: {named} is code that comes with the checkpoint; look at it, and let it run with "
        "--trust_remote_code"
    )


def _file_of(module: Module) -> str:
    return str(module.code).rpartition(".")[0].replace(".", "/") + ".py"


def _features(states: FloatArray, input_ids: Int32Array, num_layers: int) -> Features:
    """One input's, in numpy; `states` [tokens, H], or [tokens, layers * H]."""
    layers = np.split(states[None], max(1, num_layers), axis=2)
    features: Features = {
        "token_embeddings": layers[-1],
        "attention_mask": np.ones((1, len(input_ids)), np.int64),
        "input_ids": input_ids[None].astype(np.int64),
        "input_lengths": np.array([len(input_ids)], np.int64),
    }
    return features | ({"all_layer_embeddings": tuple(layers)} if num_layers else {})


def _vector(features: Features, where: Path) -> FloatArray:
    """[1, dim]; CheckpointError where the chain left none."""
    vector = features.get(_VECTOR)
    if vector is None:
        raise CheckpointError(f"{where}: the chain leaves no {_VECTOR}; it needs a pooling")
    return as_array(vector, _VECTOR).astype(np.float32, copy=False).reshape(1, -1)


def _load_step(folder: Path, module: Module, features: Features) -> Step:
    """One module; `features` are what comes into it."""
    if module.code is not None:
        return _load_foreign(folder, module)
    ops = NumpyOps()
    if module.kind == "Pooling":
        pooling = load_pooling(module, np.shape(features["token_embeddings"])[-1])
        if not pooling.include_prompt:
            raise CheckpointError(f"{module.folder}: include_prompt false does not go with modules of one's own")

        def pool(features: Features, extra: Mapping[str, Any], guard: Guard) -> Features:
            tokens = as_array(features["token_embeddings"], "token_embeddings").astype(np.float32, copy=False)[0]
            batch = pack([Item(np.zeros(len(tokens), np.int32), 0)])
            return {**features, _VECTOR: pooling(ops, tokens, batch)}

        return pool
    stage, _ = load_stage(module, _vector(features, module.folder).shape[1], ops)

    def apply(features: Features, extra: Mapping[str, Any], guard: Guard) -> Features:
        return {**features, _VECTOR: stage(ops, _vector(features, module.folder))}

    return apply


def _load_foreign(folder: Path, module: Module) -> Step:
    name, file = module.kind, inside(folder, _file_of(module)).absolute()
    made = load_class(file, name)
    line = line_of(made, file)
    with loading(file, line):
        instance = _made(made, folder, module)
    torch: Any = sys.modules.get("torch")  # it is there where the module needs it, since that has imported it
    is_torch = torch is not None and isinstance(instance, torch.nn.Module)
    if is_torch:
        instance.eval()

    if not callable(instance) and not hasattr(instance, "forward"):
        raise CheckpointError(f"{file}:{line}: {name} has neither __call__ nor forward, which answer with features")
    returns = line_of_return(made, "forward" if hasattr(made, "forward") else "__call__", file)
    place = f"{file.name}:{returns}" if returns else file.name

    def run(features: Features, extra: Mapping[str, Any], guard: Guard) -> Features:
        named = {key: extra[key] for key in module.kwargs if key in extra}
        with guard(file, line), torch.inference_mode() if is_torch else nullcontext():
            given = {key: _tensors(torch, value) for key, value in features.items()} if is_torch else dict(features)
            returned = (instance if callable(instance) else instance.forward)(given, **named)
            made_of_it = dict(returned)
            for key in {_VECTOR, "token_embeddings"} & made_of_it.keys():
                as_array(made_of_it[key], f"{place}: {name}'s {key}")
            return made_of_it

    return run


def _made(made: Any, folder: Path, module: Module) -> Any:
    """The instance, loaded as sentence-transformers 2 to 6 do."""
    if not hasattr(made, "load"):
        return made()
    if len(inspect.signature(made.load).parameters) == 1:
        return made.load(str(module.folder))
    return made.load(
        str(folder),
        subfolder=str(module.folder.relative_to(folder)),
        token=None,
        cache_folder=None,
        revision=None,
        local_files_only=True,
        trust_remote_code=True,
        model_kwargs={},
        processor_kwargs={},
        config_kwargs={},
        backend="torch",
    )


def _tensors(torch: Any, value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_tensors(torch, entry) for entry in value)
    return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
