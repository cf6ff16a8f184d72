"""What a checkpoint is served for: what the flag names, else what its files hold."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rtp_llm import config_files
from rtp_llm.architectures import CLIP_TEXT, LAYERWISE, LISTWISE, architecture_of, model_type_of
from rtp_llm.chat_format import ChatFormat
from rtp_llm.checkpoint import names_of
from rtp_llm.config import EngineConfig
from rtp_llm.core import TaskType
from rtp_llm.errors import CheckpointError, ConfigError
from rtp_llm.late_interaction import LateInteraction
from rtp_llm.m3_heads import check_heads, has_heads
from rtp_llm.modules import CLIP, TABLES, TOKEN_WEIGHTS, Module, Router, num_scores

logger = logging.getLogger(__name__)

# Tokens come with the dense vectors: they take no head of their own.
_DENSE = (TaskType.DENSE, TaskType.TOKENS)
_TASKS_BY_FLAG = {
    "DENSE_EMBEDDING": _DENSE,
    "SPARSE_EMBEDDING": (TaskType.SPARSE,),
    "COLBERT_EMBEDDING": (TaskType.COLBERT,),
    "RERANKER": (TaskType.RERANK,),
    "SEQ_CLASSIFICATION": (TaskType.CLASSIFY,),
    "TOKEN_CLASSIFICATION": (TaskType.TOKEN_CLASSIFY,),
    "BGE_M3": (TaskType.DENSE, TaskType.SPARSE, TaskType.COLBERT, TaskType.TOKENS),
    "ALL_EMBEDDING": (TaskType.TOKENS,),
    "CUSTOM": (TaskType.CUSTOM,),
}
# By these a language model is told that reranks; of those whose prompt is known, the ones whose is another.
_RERANKERS = ("rerank", "zerank")
_ASKED_BY_NAME = ("Qwen3ForCausalLM", "GemmaForCausalLM")
_OWN_PROMPTS = ("zerank", "ctxl")
_QWEN3_VL = "Qwen3VL"
_HEADS_LEFT_OUT = ("ForQuestionAnswering", "ForMultipleChoice", "ForNextSentencePrediction")


def choose_tasks(
    config: EngineConfig,
    hf: Mapping[str, Any],
    folder: Path,
    modules: tuple[Module, ...],
    late: LateInteraction | None,
    router: Router | None,
) -> tuple[TaskType, ...]:
    """The tasks, the first of which is the checkpoint's own; what its files say comes as in ModelConfig.

    ConfigError for flags that do not go together, CheckpointError for files that do not.
    """
    tasks = _of_router(router, _recognised(config, hf, folder, modules, late))
    if model_type_of(hf, config.model_type) == CLIP_TEXT:
        return _of_clip(tasks)
    if modules and modules[0].kind == CLIP:
        raise CheckpointError(f"{folder / 'modules.json'}: the first module is {CLIP}, but config.json is no CLIP's")
    return tasks


def under_chat(path: Path, tasks: tuple[TaskType, ...], chat: ChatFormat) -> tuple[TaskType, ...]:
    """The tasks that are left where texts go through a chat template, which is made for pairs; CheckpointError: none.

    Without one all are.
    """
    scoring = tuple(task for task in tasks if task is not TaskType.CLASSIFY)
    if chat.asked and not scoring:
        raise CheckpointError(
            f"{path}: modality_config has 'message', which puts texts through the tokenizer's chat template; that is "
            "served for rerankers, which have one label"
        )
    return scoring if chat.asked else tasks


def _recognised(
    config: EngineConfig,
    hf: Mapping[str, Any],
    folder: Path,
    modules: tuple[Module, ...],
    late: LateInteraction | None,
) -> tuple[TaskType, ...]:
    """A custom module, beside what the flag names; the flag; else what the folder holds: late interaction, BGE-M3's
    heads, a language model that reranks, a chain with a pooling, a head for texts or for tokens, an encoder.

    A head with one label is a reranker, whose logits the classifier's route gives as well.
    """
    if config.task_type == "CUSTOM" and not config.custom_module:
        raise ConfigError("task_type CUSTOM needs --custom_module FILE.py:Class", param="custom_module")
    if architecture_of(hf) == LISTWISE:
        return _of_listwise(config)
    if config.custom_module:
        named = () if config.task_type == "auto" else _TASKS_BY_FLAG[config.task_type]
        return (TaskType.CUSTOM, *(task for task in named if task is not TaskType.CUSTOM))
    if config.task_type != "auto":
        return _TASKS_BY_FLAG[config.task_type]
    if config.embedding_model == 1:
        return _DENSE
    if late is not None:
        return (TaskType.COLBERT, TaskType.TOKENS)
    if has_heads(folder):
        return _TASKS_BY_FLAG["BGE_M3"]
    check_heads(folder)
    kinds, architecture = [module.kind for module in modules], architecture_of(hf)
    if "Pooling" not in kinds:
        _check_head(folder, architecture)
    if "SpladePooling" in kinds:
        return (TaskType.SPARSE,)
    named_reranker = not modules and _is_named_reranker(architecture, config, folder)
    if "LogitScore" in kinds or named_reranker or architecture == LAYERWISE:
        return (TaskType.RERANK,)
    columns = num_scores(modules)
    if columns is not None:
        return (TaskType.RERANK, TaskType.CLASSIFY) if columns == 1 else (TaskType.CLASSIFY,)
    if "TokenClassification" in architecture and "Pooling" not in kinds:
        return (TaskType.TOKEN_CLASSIFY,)
    if "SequenceClassification" not in architecture or "Pooling" in kinds:
        return _DENSE
    is_one = len(config_files.labels(folder / "config.json", hf)) == 1
    return (TaskType.RERANK, TaskType.CLASSIFY) if is_one else (TaskType.CLASSIFY,)


def _check_head(folder: Path, architecture: str) -> None:
    """CheckpointError for a reward model, whose head is its own code's, as of Qwen2.5-Math-RM; a line for other heads
    that are not served: texts would get vectors, as from sentence-transformers.
    """
    if "RewardModel" in architecture:
        raise CheckpointError(
            f"{folder / 'config.json'}: a {architecture} scores conversations, by a head that is not served; take a "
            "reranker or a classifier (ForSequenceClassification), or say --task_type DENSE_EMBEDDING for vectors of "
            "its hidden states"
        )
    ending = next((head for head in _HEADS_LEFT_OUT if architecture.endswith(head)), None)
    if ending is not None:
        logger.warning(
            "%s: a %s, whose head is not served: texts get vectors of its hidden states, as from sentence-transformers",
            folder / "config.json", architecture,
        )  # fmt: skip


def _of_listwise(config: EngineConfig) -> tuple[TaskType, ...]:
    """A reranker that reads all documents at once; ConfigError where it is asked for something else."""
    if config.task_type not in ("auto", "RERANKER") or config.custom_module or config.embedding_model == 1:
        raise ConfigError(f"task_type: a {LISTWISE} is served as a RERANKER alone", param="task_type")
    return (TaskType.RERANK,)


def _of_clip(tasks: tuple[TaskType, ...]) -> tuple[TaskType, ...]:
    """Those of a tower that is made for one vector a text; ConfigError where another is asked for."""
    other = next((task for task in tasks if task not in (*_DENSE, TaskType.CUSTOM)), None)
    served = tuple(task for task in tasks if task is not TaskType.TOKENS)
    if other is not None or not served:
        raise ConfigError(
            f"task_type: a CLIP gives a vector of a text, not {other or TaskType.TOKENS}; leave --task_type out",
            param="task_type",
        )
    return served


def _is_named_reranker(architecture: str, config: EngineConfig, folder: Path) -> bool:
    """Whether it is one of Qwen3-Reranker, Qwen3-VL-Reranker or bge-reranker-v2-gemma, which nothing tells from other
    language models but their names; CheckpointError for one that is called a reranker and has a prompt of its own.
    """
    name = " ".join(names_of(config, folder))
    if architecture.startswith(_QWEN3_VL):
        return _RERANKERS[0] in name
    if not architecture.endswith("ForCausalLM") or not any(word in name for word in _RERANKERS):
        return False
    if architecture in _ASKED_BY_NAME and "reranker" in name and not any(word in name for word in _OWN_PROMPTS):
        return True
    if architecture == LAYERWISE:
        return False
    raise CheckpointError(
        f"{folder}: a reranker by its name, a {architecture} by config.json, and no file says how it is asked. Where "
        "its repository has modules.json with LogitScore by now, as zerank's, mxbai-rerank-v2's and ctxl-rerank-v2's, "
        "download it again; else say with --task_type what it is served for, RERANKER being asked as Qwen3-Reranker is"
    )


def _of_router(router: Router | None, tasks: tuple[TaskType, ...]) -> tuple[TaskType, ...]:
    """The tasks that all routes serve: a table of tokens has no hidden states.

    CheckpointError unless they give the same kind of vectors, and those are asked for.
    """
    if router is None:
        return tasks
    kinds = {modules[-1].kind for modules in router.routes.values()}
    is_sparse = bool(kinds & {"SpladePooling", TOKEN_WEIGHTS})
    if is_sparse and not kinds <= {"SpladePooling", TOKEN_WEIGHTS}:
        raise CheckpointError(
            f"{router.path}: some routes give sparse vectors and some do not: {', '.join(sorted(kinds))}"
        )
    served = (TaskType.SPARSE,) if is_sparse else _DENSE
    if not {*tasks} <= {*served}:
        asked, offered = ", ".join(tasks), ", ".join(served)
        raise CheckpointError(
            f"{router.path}: a Router's routes are served for {offered}, not {asked}; leave --task_type out"
        )
    has_table = any(modules[0].kind in TABLES for modules in router.routes.values())
    return tuple(task for task in tasks if task is not TaskType.TOKENS) if has_table else tasks
