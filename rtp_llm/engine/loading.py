"""`load_engine` puts a checkpoint, a runtime and a tokeniser together; `load_engines` several, on one device."""

import errno
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rtp_llm.checkpoint import adapter_summary, lora_modules, open_tensors, resolved
from rtp_llm.checkpoint.tensors import DTYPES
from rtp_llm.config import EngineConfig
from rtp_llm.config_files import stored_quantization
from rtp_llm.core import ModelInfo, TaskType
from rtp_llm.engine.chunker import Chunker
from rtp_llm.engine.default_prompt import with_default_prompt
from rtp_llm.engine.doubts import warn_of_direction, warn_of_pairs
from rtp_llm.engine.encoders import embedding_encoder, lookup_tokenizers, pair_encoder
from rtp_llm.engine.engine import Engine
from rtp_llm.engine.likeness import WAYS_OUT, report_likeness
from rtp_llm.engine.tokenizer import Tokenizer
from rtp_llm.engine.tokenizer_pool import PairEncoder, TokenizerPool
from rtp_llm.errors import CheckpointError, ConfigError, EngineFailure, RtpError, in_one_line
from rtp_llm.model_config import ModelConfig, read_model_config
from rtp_llm.models import Model
from rtp_llm.observability import Metrics, resident_bytes
from rtp_llm.ops.native_library import release_free_memory
from rtp_llm.runtime import Runtime, load_runtime
from rtp_llm.served_models import ServedModel
from rtp_llm.tasks import TaskSource, load_tasks

logger = logging.getLogger(__name__)


_LABELLING = {TaskType.CLASSIFY, TaskType.TOKEN_CLASSIFY}


class Reach(NamedTuple):
    """What the tokenizer of a model must know of it."""

    max_positions: int
    vocab_size: int
    learnt_positions: bool

    @classmethod
    def of(cls, model: Model) -> "Reach":
        """What a loaded model can read."""
        return cls(model.max_positions, model.vocab_size, model.learnt_positions)


def load_engines(models: Sequence[ServedModel]) -> list[Engine]:
    """One after another, all on the device of the first; where there are several, errors name theirs."""
    engines: list[Engine] = []
    for number, model in enumerate(models, 1):
        if len(models) > 1:
            logger.info("loading %s, model %d of %d", model.name, number, len(models))
        try:
            beside = engines[0] if engines else None
            engines.append(load_engine(model.config, model.name, aliases=model.aliases, beside=beside))
        except RtpError as error:
            if engines:
                engines[0].close()
            if len(models) > 1:
                error.message = f"model {model.name}: {error.message}"
                error.args = (error.message,)
            raise
    return engines


def load_engine(
    config: EngineConfig, name: str, *, aliases: tuple[str, ...] = (), beside: Engine | None = None
) -> Engine:
    """From configuration to a ready engine; CheckpointError or ConfigError say what stands in the way.

    `beside` is another model's, whose device this one is to share.
    """
    started = time.perf_counter()
    try:
        engine = _load(config, name, aliases, beside)
        if config.warm_up:
            _warm_up(engine, config.checkpoint_path, is_alone=beside is None)
    except RtpError:
        raise
    except Exception as error:  # the border: what no reader foresaw is still one line
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            raise ConfigError(f"{config.checkpoint_path}: there is not enough memory to load it") from error
        logger.debug("loading %s failed", config.checkpoint_path, exc_info=True)
        raise CheckpointError(
            f"{config.checkpoint_path:.200} cannot be loaded: {in_one_line(error):.300} (--log_level debug shows where)"
        ) from error
    seconds, info = time.perf_counter() - started, engine.info()
    megabytes = info.weight_bytes / 1e6, info.memory_bytes / 1e6
    logger.info("loaded %s in %.2f s: weights of %.1f MB, memory grew by %.1f MB", name, seconds, *megabytes)
    return engine


def _warm_up(engine: Engine, path: str, *, is_alone: bool) -> None:
    """A model alone that fails is let go: its threads would keep it in memory."""
    try:
        engine.warm_up()
    except BaseException as error:
        if is_alone:
            engine.close(0)
        if isinstance(error, EngineFailure):
            raise EngineFailure(f"{path:.200}: the warm-up failed: {error.message}") from error
        raise


def _load(config: EngineConfig, name: str, aliases: tuple[str, ...], beside: Engine | None) -> Engine:
    memory = resident_bytes()
    with resolved(config) as folder:
        model_config = with_default_prompt(read_model_config(folder, config), config)
        model_config = replace(model_config, lora_modules=lora_modules(config))
        changes = adapter_summary(model_config.transformer_folder)
        if changes is not None:
            logger.info("%s: an adapter, %s", config.checkpoint_path, changes)
        runtime = load_runtime(config, model_config, beside.runtime if beside else None)
        if runtime.model.adapters:
            names = ", ".join(runtime.model.adapters)
            logger.info("%s: each request chooses one of the adapters %s", config.checkpoint_path, names)
        try:
            info, pool = _prepare(config, model_config, runtime)
        except BaseException:
            runtime.close()  # else the other processes of a model in parts would live on
            raise
    memory_bytes = max(resident_bytes() - memory, 0)
    info = replace(info, name=name, aliases=aliases, memory_bytes=memory_bytes)
    release_free_memory()
    device = beside.device if beside else None
    cost = _matrix_size(runtime.model) / _matrix_size(beside.runtime.model) if beside else 1.0
    return Engine(config, runtime, pool, info, Metrics(), device, cost)


def _prepare(config: EngineConfig, model_config: ModelConfig, runtime: Runtime) -> tuple[ModelInfo, TokenizerPool]:
    """All that stands around a runtime, which gets its tasks; of the model's info, what is not the caller's to say."""
    model = runtime.model
    tokenizer = load_tokenizer(config, model_config, Reach.of(model))
    looked_up = lookup_tokenizers(config, model_config)
    source = task_source(config, model_config, runtime, tokenizer, looked_up)
    for replica in runtime.replicas:
        replica.tasks = load_tasks(replace(source, ops=replica.ops))
    runtime.start(tokenizer.max_seq_len)
    quantization = stored_quantization(model_config.hf)
    if quantization == "none" and config.quantization in WAYS_OUT and config.quantization_check:
        report_likeness(config, model_config, runtime, tokenizer)
    quantized = quantization if config.quantization == "none" else config.quantization
    info = _describe(config, model_config, runtime, tokenizer)
    info = info if quantized == "none" else replace(info, dtype=quantized)
    reranking = pair_encoder(tokenizer, model_config)
    warn_of_pairs(model_config, reranking, tokenizer.chat_template.source, causal=model.causal)
    warn_of_direction(model_config, info.pooling, causal=model.causal)
    return info, _tokenizer_pool(config, model_config, tokenizer, looked_up, reranking)


def load_pool(config: EngineConfig, reach: Reach) -> TokenizerPool:
    """What encodes for a model that is loaded elsewhere, with this configuration; errors as `load_engine`."""
    with resolved(config, progress=False) as folder:
        model_config = with_default_prompt(read_model_config(folder, config), config)
        tokenizer = load_tokenizer(config, model_config, reach)
        looked_up, reranking = lookup_tokenizers(config, model_config), pair_encoder(tokenizer, model_config)
        return _tokenizer_pool(config, model_config, tokenizer, looked_up, reranking)


def _tokenizer_pool(
    config: EngineConfig,
    model_config: ModelConfig,
    tokenizer: Tokenizer,
    looked_up: Mapping[Path, Tokenizer],
    reranking: PairEncoder | None,
) -> TokenizerPool:
    embedding = embedding_encoder(config, model_config, tokenizer, looked_up)
    chunking = Chunker(tokenizer, config.max_request_tokens)
    return TokenizerPool(tokenizer, config.tokenizer_threads, embedding, reranking, chunking)


def _describe(config: EngineConfig, model_config: ModelConfig, runtime: Runtime, tokenizer: Tokenizer) -> ModelInfo:
    """What is loaded, and its limits; its names and its place in memory are the caller's to say."""
    first = next(iter(runtime.tasks.values()))
    return ModelInfo(
        name="",
        model_type=runtime.model_type,
        tasks=tuple(runtime.tasks),
        dimension=first.dimension,
        full_dimension=first.full_dimension if first.truncate_dim is not None else None,
        max_seq_len=tokenizer.max_seq_len,
        vocab_size=runtime.model.vocab_size,
        backend=runtime.ops.name,
        instruction_set=runtime.ops.instruction_set,
        num_threads=runtime.num_cores,
        dtype=runtime.dtype,
        max_batch_tokens=config.max_context_batch_size * tokenizer.max_seq_len or runtime.batch_tokens,
        prompts=tuple(tokenizer.prompts),
        empty_prompts=tuple(name for name, text in tokenizer.prompts.items() if not text),
        adapters=runtime.model.adapters,
        lora_modules=tuple(model_config.lora_modules),
        merged_adapter=runtime.model.merged_adapter,
        needs_adapter=runtime.model.needs_adapter,
        scores_are_probabilities=model_config.is_language_reranker or model_config.logit_score is not None,
        max_sim=model_config.late.max_sim if model_config.late else "mean",
        labels=model_config.labels if _LABELLING.intersection(runtime.tasks) else (),
        pooling=runtime.tasks[TaskType.DENSE].pooling_name if TaskType.DENSE in runtime.tasks else "",
        created=int(time.time()),
        weight_bytes=_weight_bytes(model_config.transformer_folder),
    )


def _matrix_size(model: Model) -> int:
    """What a token costs grows with it: the layers' matrices have some multiple of so many weights."""
    return max(len(model.layers), 1) * model.hidden_size**2


def _weight_bytes(folder: Path) -> int:
    """Of the checkpoint's tensors, as they stand in its files."""
    tensors = open_tensors(folder).tensors.values()
    return sum(info.num_elements * np.dtype(DTYPES[info.dtype]).itemsize for info in tensors)


def load_tokenizer(config: EngineConfig, model_config: ModelConfig, reach: Reach) -> Tokenizer:
    """The checkpoint's tokenizer, within what the model can read."""
    return Tokenizer.load(
        config,
        model_config,
        max_positions=reach.max_positions,
        vocab_size=reach.vocab_size,
        is_hard=reach.learnt_positions,
    )


def task_source(
    config: EngineConfig,
    model_config: ModelConfig,
    runtime: Runtime,
    tokenizer: Tokenizer,
    looked_up: Mapping[Path, Tokenizer],
) -> TaskSource:
    """What the tasks of a loaded model are made from; `looked_up` as `lookup_tokenizers` gives it."""
    return TaskSource(
        model_config=model_config,
        pooling=config.pooling,
        hidden_size=runtime.model.hidden_size,
        causal=runtime.model.causal,
        ops=runtime.ops,
        vocabulary=tokenizer,
        num_layers=len(runtime.model.layers),
        custom_module=config.custom_module,
        trust_remote_code=config.trust_remote_code,
        looked_up=looked_up,
    )
