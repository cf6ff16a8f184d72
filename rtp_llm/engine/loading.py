"""`load_engine` puts a checkpoint, a runtime and a tokeniser together."""

import logging
import time

from rtp_llm.checkpoint import resolve
from rtp_llm.config import EngineConfig
from rtp_llm.core import ModelInfo, TaskType
from rtp_llm.engine.calibration import report_likeness
from rtp_llm.engine.engine import Engine
from rtp_llm.engine.rerank_template import RerankTemplate
from rtp_llm.engine.tokenizer import Tokenizer, TokenizerPool
from rtp_llm.errors import CheckpointError, ConfigError, RtpError
from rtp_llm.model_config import ModelConfig, read_model_config, stored_quantization
from rtp_llm.observability import Metrics
from rtp_llm.ops.native_library import release_free_memory
from rtp_llm.runtime import Runtime, load_runtime
from rtp_llm.tasks import TaskSource, load_tasks

logger = logging.getLogger(__name__)


def load_engine(config: EngineConfig, name: str) -> Engine:
    """From configuration to a ready engine; CheckpointError or ConfigError say what stands in the way."""
    try:
        return _load(config, name)
    except RtpError:
        raise
    except MemoryError as error:
        raise ConfigError(f"{config.checkpoint_path}: there is not enough memory to load it") from error
    except Exception as error:  # the border: what no reader foresaw is still one line
        logger.debug("loading %s failed", config.checkpoint_path, exc_info=True)
        problem = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(
            f"{config.checkpoint_path:.200} cannot be loaded: {problem:.300} (--log_level debug shows where)"
        ) from error


def _load(config: EngineConfig, name: str) -> Engine:
    started = time.perf_counter()
    folder = resolve(config)
    model_config = read_model_config(folder, config)
    runtime = load_runtime(config, model_config)
    model = runtime.model
    tokenizer = Tokenizer.load(config, model_config, max_positions=model.max_positions, vocab_size=model.vocab_size)
    runtime.tasks = load_tasks(task_source(config, model_config, runtime, tokenizer))
    quantization: str = stored_quantization(model_config.hf)
    if quantization == "none" and config.quantization != "none":
        quantization = config.quantization
        if config.quantization_check:
            report_likeness(config, model_config, runtime, tokenizer)
    info = ModelInfo(
        name=name,
        model_type=runtime.model_type,
        tasks=tuple(runtime.tasks),
        dimension=next(iter(runtime.tasks.values())).dimension,
        max_seq_len=tokenizer.max_seq_len,
        vocab_size=model.vocab_size,
        backend=runtime.ops.name,
        instruction_set=runtime.ops.instruction_set,
        num_threads=runtime.num_cores,
        dtype="fp32" if quantization == "none" else quantization,
        max_batch_tokens=config.max_context_batch_size * tokenizer.max_seq_len or runtime.batch_tokens,
        prompts=tuple(tokenizer.prompts),
        scores_are_probabilities=model_config.is_qwen3_reranker,
        labels=model_config.labels if TaskType.CLASSIFY in runtime.tasks else (),
        pooling=getattr(runtime.tasks.get(TaskType.DENSE), "pooling_name", ""),
        created=int(time.time()),
    )
    template = RerankTemplate(tokenizer) if model_config.is_qwen3_reranker else None
    pool = TokenizerPool(tokenizer, config.tokenizer_threads, template)
    engine = Engine(config, runtime, pool, info, Metrics())
    if config.warm_up:
        engine.warm_up()
    release_free_memory()
    logger.info("loaded %s in %.2f s", name, time.perf_counter() - started)
    return engine


def task_source(config: EngineConfig, model_config: ModelConfig, runtime: Runtime, tokenizer: Tokenizer) -> TaskSource:
    """What the tasks of a loaded model are made from."""
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
    )
