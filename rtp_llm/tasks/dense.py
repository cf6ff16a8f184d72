"""Dense embeddings: the sentence-transformers module chain, natively.

Pooling, Dense, LayerNorm, Normalize and Dropout as sentence_transformers 2 to 6 write them to disk; of a
StaticEmbedding, the mean of the tokens' rows comes before them. Without modules.json the hidden states are mean-pooled,
of a causal language model the last one is taken, and not normalised, as sentence-transformers does; those of a BGE-M3
are the first token's, normalised, as FlagEmbedding does. Normalize modules at the end of the chain are left to
`finish`, since a request may slice the vector before (Matryoshka) or not want it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from rtp_llm import config_files
from rtp_llm.checkpoint import Parameter, bind, open_tensors, read_json
from rtp_llm.core import Batch, FloatArray, Int32Array, Params, Reads, Rows
from rtp_llm.errors import CheckpointError, ConfigError
from rtp_llm.model_config import ModelConfig
from rtp_llm.modules import ROUNDING, Module
from rtp_llm.ops import Norm, Ops, PoolMode, Tensor, Weight, layer_norm
from rtp_llm.tasks import Task, TaskSource
from rtp_llm.tasks.end_token import EndToken
from rtp_llm.tasks.finishing import check_dimensions, own_truncate_dim, slice_and_normalize, torch_activation

# The order in which sentence-transformers concatenates several modes, and their keys in files written before 5.4.
_POOL_KEYS: dict[str, PoolMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


class Stage(Protocol):
    """A module after the pooling: [B, N] -> [B, M]."""

    def __call__(self, ops: Ops, x: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class PoolingModes:
    """One or more pooling modes, concatenated."""

    modes: tuple[PoolMode, ...]
    include_prompt: bool = True

    @property
    def reads(self) -> Reads:
        """Where prompts are skipped, the first row is another one, and a text that is all prompt has no last one."""
        if not self.include_prompt:
            return "all"
        return "first" if self.modes == ("cls",) else "last" if self.modes == ("lasttoken",) else "all"

    def __call__(self, ops: Ops, hidden_states: Tensor, batch: Batch) -> Tensor:
        pooled = [ops.pool(hidden_states, batch, mode, skip_prompt=not self.include_prompt) for mode in self.modes]
        return pooled[0] if len(pooled) == 1 else ops.concat(pooled)


@dataclass(frozen=True, slots=True)
class DenseStage:
    """sentence_transformers Dense: activation(linear(x)), plus the input where `use_residual`."""

    weight: Weight
    bias: Tensor | None
    activation: str | None
    residual: Weight | None
    add_input: bool

    def __call__(self, ops: Ops, x: Tensor) -> Tensor:
        shortcut = ops.linear(x, self.residual) if self.residual is not None else x if self.add_input else None
        return ops.linear(x, self.weight, self.bias, self.activation, shortcut)


@dataclass(frozen=True, slots=True)
class _LayerNorm:
    norm: Norm

    def __call__(self, ops: Ops, x: Tensor) -> Tensor:
        return ops.norm(x, self.norm)


@dataclass(frozen=True, slots=True)
class Normalize:
    def __call__(self, ops: Ops, x: Tensor) -> Tensor:
        return ops.l2_normalize(x)


class Dense(Task):
    """One vector an input; `dimension` is its columns where a request names no number: truncate_dim, or all.

    rounds  its numbers are whole, of 8 bits: tanh, stretched, as pplx-embed-v1's code rounds them
    """

    per_token = False
    full_dimension: int

    def __init__(
        self,
        pooling: PoolingModes,
        stages: Sequence[Stage],
        dimension: int,
        truncate_dim: int | None = None,
        *,
        rounds: bool = False,
        num_read: Callable[[Int32Array], int] | None = None,
    ) -> None:
        self.rounds = rounds
        self.num_read = num_read
        stages, self.normalizes = without_normalize(stages)
        self.pooling = pooling
        self.reads = pooling.reads
        self.stages = stages
        self.dimension = truncate_dim or dimension
        self.full_dimension = dimension
        self.truncate_dim = truncate_dim
        self.pooling_name = "+".join(pooling.modes)  # in sentence-transformers' words
        # Of a text that is read at once, the parts' vectors must be means.
        self.chunkings: tuple[str, ...] = ("mean", "late") if pooling.modes == ("mean",) else ("mean",)

    @classmethod
    def load(cls, source: TaskSource) -> "Dense":
        """The chain that the checkpoint describes; the pooling flag is for one without modules.json."""
        task = cls._of_chain(source)
        if source.model_config.is_chat_embedder:
            task.chunkings = ()
        return task

    @classmethod
    def _of_chain(cls, source: TaskSource) -> "Dense":
        model_config, hidden_size = source.model_config, source.hidden_size
        if model_config.modules is None:
            mode: Any = model_config.default_pooling if source.pooling == "auto" else source.pooling
            is_normal = model_config.is_bge_m3 or model_config.is_chat_embedder
            stages: list[Stage] = [Normalize()] if is_normal else []
            own = own_truncate_dim(model_config, hidden_size)
            if model_config.is_clip and mode != model_config.default_pooling:
                raise ConfigError(
                    f"pooling: {mode} of a CLIP, which reads a text at its end token; leave the option out",
                    param="pooling",
                )
            return cls(PoolingModes((mode,)), stages, hidden_size, own, num_read=_num_read(source))
        chain = [module for module in model_config.modules if module.kind != "Dropout"]
        first = _load_first(model_config, chain, hidden_size)
        dimension = hidden_size * len(first.modes)
        rounds = bool(chain) and chain[-1].kind == ROUNDING
        stages = []
        for module in chain[:-1] if rounds else chain:
            stage, dimension = load_stage(module, dimension, source.ops)
            stages.append(stage)
        own = own_truncate_dim(model_config, dimension)
        return cls(first, stages, dimension, own, rounds=rounds, num_read=_num_read(source))

    def __call__(self, ops: Ops, hidden_states: Tensor, batch: Batch) -> Tensor:
        """[T, H] -> [B, dimension], before the final Normalize."""
        x = self.pooling(ops, hidden_states, batch)
        for stage in self.stages:
            x = stage(ops, x)
        return x

    def check(self, params: Params) -> None:
        """`dimensions` must lie in 1..full_dimension."""
        check_dimensions(params, self.full_dimension)

    def finish(self, rows: Rows, params: Params, input_ids: Sequence[Int32Array]) -> FloatArray:
        """Slice to `dimensions`, then normalise as the checkpoint or the request says -> [n, dimensions]."""
        assert not isinstance(rows, list)
        rows = np.clip(np.round(np.tanh(rows) * np.float32(127)), -128, 127) if self.rounds else rows
        return slice_and_normalize(rows, params, normalizes=self.normalizes, truncate_dim=self.truncate_dim)


def without_normalize(stages: Sequence[Stage]) -> tuple[list[Stage], bool]:
    """The stages but for the Normalize modules at their end, which are for `finish`; and whether there are such."""
    kept = list(stages)
    while kept and isinstance(kept[-1], Normalize):
        kept.pop()
    return kept, len(kept) < len(stages)


def _num_read(source: TaskSource) -> Callable[[Int32Array], int] | None:
    """`Task.num_read`."""
    if not source.model_config.is_clip:
        return None
    return EndToken.of(source.model_config, source.vocabulary.special_ids.get("eos")).num_read


def _load_first(model_config: ModelConfig, chain: list[Module], hidden_size: int) -> PoolingModes:
    """How a text's vector is made of its tokens'; the module that says it is taken from the chain."""
    path, found = model_config.folder / "modules.json", chain[0].kind if chain else "missing"
    if model_config.is_static:
        return PoolingModes(("mean",))
    if model_config.is_clip:
        if found == "Pooling":
            raise CheckpointError(f"{path}: the second module is Pooling; a CLIP is served without, by its end token")
        return PoolingModes((model_config.default_pooling,))
    if found != "Pooling":
        raise CheckpointError(f"{path}: the second module is {found}; only Pooling is served there")
    first = load_pooling(chain.pop(0), hidden_size)
    return replace(first, include_prompt=False) if model_config.skips_prompt else first


def load_pooling(module: Module, hidden_size: int) -> PoolingModes:
    """The pooling that the module's config.json asks for; CheckpointError where it is for another hidden size."""
    settings = read_json(module.folder, "config.json")
    path = module.folder / "config.json"
    config_files.check(path, settings, config_files.POOLING)
    config_files.log_unknown(path, settings, {*config_files.POOLING, *_POOL_KEYS})
    for key in ("embedding_dimension", "word_embedding_dimension"):
        if settings.get(key) not in (None, hidden_size):
            raise CheckpointError(f"{path}: {key} is {settings[key]}, but the model's hidden_size is {hidden_size}")
    named = settings.get("pooling_mode")
    if named is not None:
        modes = (named,) if isinstance(named, str) else tuple(named)
    else:
        modes = tuple(mode for key, mode in _POOL_KEYS.items() if settings.get(key)) or ("mean",)
    for mode in modes:
        if mode not in _POOL_KEYS.values():
            known = ", ".join(_POOL_KEYS.values())
            raise CheckpointError(f"{path}: pooling_mode {mode!r} is not one of {known}")
    return PoolingModes(modes or ("mean",), bool(settings.get("include_prompt", True)))


def load_stage(
    module: Module, dimension: int, ops: Ops, features: Sequence[str] = ("sentence_embedding",)
) -> tuple[Stage, int]:
    """One module and the columns it leaves; it must read and write one of `features`, where it names them."""
    check_features(module, read_json(module.folder, "config.json", required=False), features)
    if module.kind == "Normalize":
        return Normalize(), dimension
    if module.kind == "LayerNorm":
        return _load_layer_norm(module, dimension, ops), dimension
    if module.kind == "Dense":
        return _load_linear(module, dimension, ops)
    served = "Pooling, Dense, LayerNorm, Normalize, Dropout"
    raise CheckpointError(f"{module.folder.parent / 'modules.json'}: {module.kind} is not served; {served} are")


def _load_layer_norm(module: Module, dimension: int, ops: Ops) -> _LayerNorm:
    needed = {name: Parameter((name,), (dimension,)) for name in ("norm.weight", "norm.bias")}
    weights = bind(open_tensors(module.folder), needed)
    return _LayerNorm(layer_norm(ops, weights, "norm", 1e-5))


def _load_linear(module: Module, dimension: int, ops: Ops) -> tuple[DenseStage, int]:
    settings = read_json(module.folder, "config.json")
    _check_linear(module, settings, dimension)
    columns = int(settings["out_features"])
    needed = {"weight": Parameter(("linear.weight",), (columns, dimension))}
    if settings.get("bias", True):
        needed["bias"] = Parameter(("linear.bias",), (columns,))
    add_input = bool(settings.get("use_residual", False))
    if add_input and columns != dimension:
        needed["residual"] = Parameter(("residual.weight",), (columns, dimension))
    weights = bind(open_tensors(module.folder), needed)
    linear = DenseStage(
        weight=ops.matrix(weights["weight"]),
        bias=ops.vector(weights["bias"]) if "bias" in needed else None,
        activation=_activation(module, settings),
        residual=ops.matrix(weights["residual"]) if "residual" in needed else None,
        add_input=add_input,
    )
    return linear, columns


def _check_linear(module: Module, settings: Mapping[str, Any], dimension: int) -> None:
    path = module.folder / "config.json"
    config_files.check(path, settings, config_files.DENSE)
    config_files.log_unknown(path, settings, config_files.DENSE)
    if settings.get("in_features") != dimension:
        raise CheckpointError(f"{path}: in_features {settings.get('in_features')!r}, but {dimension} columns come in")
    if "out_features" not in settings:
        raise CheckpointError(f"{path}: out_features is missing")


def check_features(module: Module, settings: Mapping[str, Any], features: Sequence[str]) -> None:
    """CheckpointError where the module reads or writes something else."""
    for key in ("module_input_name", "module_output_name"):
        if settings.get(key) not in (None, *features):
            path = module.folder / "config.json"
            raise CheckpointError(f"{path}: {key} {settings[key]!r}; only {features[0]!r} is supported")


def _activation(module: Module, settings: Mapping[str, Any]) -> str | None:
    dotted = settings.get("activation_function", "torch.nn.modules.activation.Tanh")
    return torch_activation(str(dotted), module.folder / "config.json")
