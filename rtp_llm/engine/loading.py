"""`load_engine` puts a checkpoint, a runtime and a tokeniser together."""

import logging
import time

from rtp_llm.checkpoint import resolve
from rtp_llm.config import EngineConfig
from rtp_llm.core import ModelInfo, TaskType
from rtp_llm.engine.chat_rerank import chat_rerank
from rtp_llm.engine.engine import Engine
from rtp_llm.engine.rerank_template import RerankTemplate
from rtp_llm.engine.tokenizer import Encoder, Tokenizer, TokenizerPool
from rtp_llm.errors import CheckpointError, ConfigError, RtpError
from rtp_llm.model_config import ModelConfig, read_model_config
from rtp_llm.observability import Metrics
from rtp_llm.runtime import load_runtime
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
    tokenizer = Tokenizer.load(
        config,
        model_config,
        max_positions=model.max_positions,
        vocab_size=model.vocab_size,
        is_hard=model.learnt_positions,
    )
    source = TaskSource(
        model_config=model_config,
        pooling=config.pooling,
        hidden_size=model.hidden_size,
        causal=model.causal,
        ops=runtime.ops,
        vocabulary=tokenizer,
        num_layers=len(model.layers),
        custom_module=config.custom_module,
        trust_remote_code=config.trust_remote_code,
    )
    runtime.tasks = load_tasks(source)
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
        dtype="int8" if config.quantization == "int8" else "fp32",
        max_batch_tokens=config.max_context_batch_size * tokenizer.max_seq_len or runtime.batch_tokens,
        prompts=tuple(tokenizer.prompts),
        scores_are_probabilities=model_config.is_language_reranker or model_config.logit_score is not None,
        labels=model_config.labels if TaskType.CLASSIFY in runtime.tasks else (),
        pooling=getattr(runtime.tasks.get(TaskType.DENSE), "pooling_name", ""),
        created=int(time.time()),
    )
    pool = TokenizerPool(tokenizer, config.tokenizer_threads, _pair_encoder(tokenizer, model_config))
    engine = Engine(config, runtime, pool, info, Metrics())
    if config.warm_up:
        engine.warm_up()
    logger.info("loaded %s in %.2f s", name, time.perf_counter() - started)
    return engine


def _pair_encoder(tokenizer: Tokenizer, model_config: ModelConfig) -> Encoder | None:
    """How a reranker that is a language model is asked: by its chat template, else as Qwen3-Reranker; None: plainly."""
    if not model_config.is_language_reranker:
        return None
    is_qwen3 = model_config.is_qwen3_reranker
    return chat_rerank(tokenizer, model_config.chat, or_else=is_qwen3) or RerankTemplate(tokenizer)
