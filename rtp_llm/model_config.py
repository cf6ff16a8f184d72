"""A checkpoint folder, read and understood: architecture, sentence-transformers modules, prompts and limits."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rtp_llm import config_files, late_interaction, transformer_settings
from rtp_llm.adapter_head import with_code, with_head
from rtp_llm.architectures import CLIP_TEXT, LAYERWISE, architecture_of, model_type_of
from rtp_llm.chat_format import ChatFormat
from rtp_llm.checkpoint import ADAPTER_CONFIG, find, names_of, read_json
from rtp_llm.config import EngineConfig
from rtp_llm.core import TaskType
from rtp_llm.errors import CheckpointError, ConfigError
from rtp_llm.late_interaction import LateInteraction
from rtp_llm.m3_heads import has_heads
from rtp_llm.modules import (
    STATIC,
    Module,
    Router,
    check_splade,
    num_scores,
    read_modules,
    read_settings,
    score_activation,
)
from rtp_llm.task_choice import choose_tasks, under_chat

logger = logging.getLogger(__name__)

# Tables of tokens' vectors have no config.json of their own.
_STATIC_HF = {"model_type": "static_embedding"}
# NVIDIA's Llama that looks both ways, of which its Nemotron embedders and rerankers are; and its words for pooling.
NEMOTRON = "llama_bidirec"
# Qwen3-VL's model for texts.
_QWEN3_VL = "qwen3_vl_text"
_SETFIT = "config_setfit.json"
# hkunlp's, whose pooling leaves the instruction out; sentence-transformers too knows them by their names alone.
_INSTRUCTORS = frozenset(("instructor-base", "instructor-large", "instructor-xl"))
# A file by which a folder without a config.json is told -> what to do with it.
_FORMATS = {
    "gliner_config.json": "a GLiNER, whose labels come with a request, is not served; a token classifier is",
    "open_clip_config.json": "an open_clip model is not served",
}
_POOLINGS: dict[str, Literal["cls", "mean", "lasttoken"]] = {"avg": "mean", "cls": "cls", "last": "lasttoken"}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What the files of a checkpoint say.

    folder                 the checkpoint
    transformer_folder     config.json, weights and tokenizer; a sub-folder in old sentence-transformers checkpoints
    hf                     config.json, under json_model_override_args
    model_type             the flag, else that of config.json, else that of its first architecture; where several share
                           a name, the one that this is
    modules                after the transformer, of a Router's main route; None without modules.json
    router                 of a checkpoint that reads an input by what it is for
    max_seq_length         of sentence_bert_config.json; None where it does not say
    prompts                name -> text; `default_prompt_name` applies when a request names none
    score_activation       dotted path of the torch.nn class that a CrossEncoder puts on its scores; None: its default
    labels                 names of a classifier's outputs, in their order
    chat                   how texts go through a chat template
    late                   of a checkpoint with a vector for each token, which are compared one by one
    is_static              the first module is a table of tokens' vectors, of which a text's is the mean
    tasks                  what to serve
    truncate_dim           leading dimensions of a dense vector, where a request names no number; None: all
    num_scores             columns that a CrossEncoder's chain of modules gives; None: it is no such chain
    max_active_dims        weights of a sparse vector, where a request names no number; None: all
    names                  how it is called, in lower case
    lora_modules           name -> folder of the adapters that requests choose; none of them is the checkpoint's
    """

    folder: Path
    transformer_folder: Path
    hf: Mapping[str, Any]
    model_type: str
    modules: tuple[Module, ...] | None
    max_seq_length: int | None
    do_lower_case: bool
    prompts: Mapping[str, str]
    default_prompt_name: str | None
    score_activation: str | None
    labels: tuple[str, ...]
    tasks: tuple[TaskType, ...]
    chat: ChatFormat = ChatFormat()
    late: LateInteraction | None = None
    is_static: bool = False
    truncate_dim: int | None = None
    max_active_dims: int | None = None
    num_scores: int | None = None
    router: Router | None = None
    names: frozenset[str] = frozenset()
    lora_modules: Mapping[str, Path] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """The first that config.json names; empty where it names none."""
        return architecture_of(self.hf)

    @property
    def logit_score(self) -> Module | None:
        """sentence-transformers' note of the two tokens that a reranking language model chooses from."""
        return next((module for module in self.modules or () if module.kind == "LogitScore"), None)

    @property
    def splade(self) -> Module | None:
        """sentence-transformers' pooling of a masked language model's logits."""
        return next((module for module in self.modules or () if module.kind == "SpladePooling"), None)

    @property
    def is_language_model(self) -> bool:
        """Whether there is a head over the vocabulary instead of one with labels."""
        return self.logit_score is not None or self.is_qwen3_vl or self.architecture.endswith("ForCausalLM")

    @property
    def is_qwen3_vl(self) -> bool:
        """Whether it is Qwen3-VL-Embedding or Qwen3-VL-Reranker, which read texts through a template of their own."""
        return self.model_type == _QWEN3_VL

    @property
    def is_chat_embedder(self) -> bool:
        """Whether what is embedded goes through a template that stands around it: its files', or its authors'."""
        is_asked = self.modules is None or bool(self.chat.asked)
        return self.is_qwen3_vl and TaskType.RERANK not in self.tasks and is_asked

    @property
    def is_nemotron(self) -> bool:
        """Whether it is NVIDIA's Llama that looks both ways: pooled, scored and asked in ways of its own."""
        return self.model_type == NEMOTRON

    @property
    def is_clip(self) -> bool:
        """Whether it is a CLIP's tower for texts, which gives a text's vector without a module for pooling."""
        return self.model_type == CLIP_TEXT

    @property
    def is_listwise(self) -> bool:
        """Whether it reads a query and all of its documents as one text."""
        return self.model_type == "jina_reranker_v3"

    @property
    def is_qwen3_reranker(self) -> bool:
        """Whether pairs are to be put as Qwen3-Reranker's question; as in the original, every Qwen3 that reranks.

        Qwen3-VL-Reranker has one of its own.
        """
        return TaskType.RERANK in self.tasks and self.model_type in ("qwen3", "qwen_3", _QWEN3_VL)

    @property
    def is_layerwise_reranker(self) -> bool:
        """Whether each of its later layers has a head of FlagEmbedding's, with the one logit of a reranker."""
        return TaskType.RERANK in self.tasks and self.architecture == LAYERWISE

    @property
    def is_flag_reranker(self) -> bool:
        """Whether pairs are to be put as FlagEmbedding's question, as to a Gemma without LogitScore."""
        is_known = (self.model_type == "gemma" and self.is_language_model) or self.is_layerwise_reranker
        return TaskType.RERANK in self.tasks and is_known and self.logit_score is None and not self.chat.asked

    @property
    def is_language_reranker(self) -> bool:
        """Whether pairs are read through a template: the checkpoint's own, Qwen3-Reranker's or FlagEmbedding's."""
        if TaskType.RERANK not in self.tasks or self.chat.asked is False:
            return False
        return bool(self.chat.asked) or self.logit_score is not None or self.is_qwen3_reranker or self.is_flag_reranker

    @property
    def default_pooling(self) -> Literal["cls", "mean", "lasttoken"]:
        """Without modules.json: of a BGE-M3 as FlagEmbedding has it, of a DPR as transformers, of others by
        sentence-transformers' own rule.

        The flag qwen_2_embedding says what is_causal false says.
        """
        if self.is_bge_m3 or self.model_type == "dpr":
            return "cls"
        if self.is_clip:
            return "lasttoken"
        if self.is_nemotron or self.model_type == "ministral3_bidirec":
            return _nvidia_pooling(self.hf.get("pooling") or "avg")
        is_causal = self.hf.get("is_causal", True) and self.model_type != "qwen_2_embedding"
        is_last = self.is_qwen3_vl or self.architecture.endswith("ForCausalLM")
        return "lasttoken" if is_causal and is_last else "mean"

    @property
    def skips_prompt(self) -> bool:
        """Whether a dense vector is without the prompt's tokens, whatever the pooling's file says."""
        return self.model_type == "t5" and not self.names.isdisjoint(_INSTRUCTORS)

    @property
    def is_bge_m3(self) -> bool:
        """Whether both of BGE-M3's heads are there."""
        return has_heads(self.folder)


def read_model_config(folder: Path, config: EngineConfig) -> ModelConfig:
    """Read the folder's JSON files; CheckpointError names the file and what is wrong with it."""
    modules, router = read_modules(folder)
    transformer_folder = modules[0].folder if modules else folder
    transformer_path, transformer = read_settings(transformer_folder, transformer_settings.FILES, modules)
    transformer_settings.check_settings(transformer_path, transformer)
    check_splade(transformer_path, transformer, modules or (), router)
    is_static = modules is not None and modules[0].kind == STATIC
    hf = {
        **(_STATIC_HF if is_static else _read_adapted(transformer_folder)),
        **transformer_settings.model_settings(transformer_path, transformer),
    }
    hf |= _with_theta(_overrides(config), hf)
    sentence_path, sentence = read_settings(folder, ("config_sentence_transformers.json",), modules)
    config_files.check_sentence(sentence_path, sentence)
    _tell_of_setfit(folder)
    chat, limit = ChatFormat.read(transformer), transformer_settings.text_limit(transformer_path, transformer)
    late = late_interaction.read(
        late_interaction.Files(
            folder=transformer_folder,
            hf=hf,
            modules=None if modules is None else [(module.kind, module.folder) for module in modules[1:]],
            path=transformer_path,
            transformer=transformer,
            sentence=sentence,
            limit=limit,
        )
    )
    tasks, columns = choose_tasks(config, hf, folder, modules or (), late, router), num_scores(modules or ())
    return ModelConfig(
        folder=folder,
        transformer_folder=transformer_folder,
        hf=hf,
        model_type=model_type_of(hf, config.model_type),
        modules=modules[1:] if modules else None,
        max_seq_length=late.max_seq_length if late else limit,
        do_lower_case=bool(transformer.get("do_lower_case", False)),
        prompts=late.prompts if late else {**_empty_prompts(router), **(sentence.get("prompts") or {})},
        default_prompt_name=sentence.get("default_prompt_name"),
        truncate_dim=sentence.get("truncate_dim"),
        score_activation=score_activation(sentence, hf),
        labels=config_files.labels(transformer_folder / "config.json", hf, columns),
        num_scores=columns,
        tasks=under_chat(transformer_path, tasks, chat),
        chat=chat,
        late=late,
        max_active_dims=sentence.get("max_active_dims"),
        router=router,
        is_static=is_static,
        names=frozenset(names_of(config, folder)),
    )


def sequence_limit(
    config: EngineConfig, model_config: ModelConfig, max_positions: int, model_max_length: int, *, is_hard: bool = True
) -> int:
    """Tokens kept of one input: the flag, else sentence-transformers' file, else what model and tokenizer allow.

    `is_hard`: the model can read no more than `max_positions`; of others, flag and file may ask for more.
    """
    if max_positions < 1:
        raise CheckpointError(
            f"{model_config.transformer_folder / 'config.json'}: max_position_embeddings leaves {max_positions} "
            "positions beside pad_token_id"
        )
    asked = config.max_seq_len or model_config.max_seq_length or 0
    if asked > max_positions and not is_hard:
        logger.warning("inputs up to %d tokens: more than the %d that the model was made for", asked, max_positions)
        return asked
    if config.max_seq_len > max_positions:
        raise ConfigError(
            f"max_seq_len: {config.max_seq_len} is more than the {max_positions} positions this model was made for",
            param="max_seq_len",
        )
    if config.max_seq_len:
        return config.max_seq_len
    if asked > max_positions:
        logger.warning("max_seq_length %d of the checkpoint: the model has %d positions, which is the limit", asked,
                       max_positions)  # fmt: skip
    return min(asked or model_max_length, max_positions)


def _nvidia_pooling(word: str) -> Literal["cls", "mean", "lasttoken"]:
    if word not in _POOLINGS:
        raise CheckpointError(f"config.json: pooling {word!r} is not one of {', '.join(_POOLINGS)}")
    return _POOLINGS[word]


def _overrides(config: EngineConfig) -> dict[str, Any]:
    """`json_model_override_args` as keys of config.json; ConfigError where it is no JSON object or has a wrong value.

    It is the option that is at fault then: `param` names it.
    """
    name, text = "json_model_override_args", config.json_model_override_args
    try:
        overrides = json.loads(text) if text else {}
    except ValueError as error:
        raise ConfigError(f"{name}: {text!r} is not JSON: {error}", param=name) from None
    if not isinstance(overrides, dict):
        raise ConfigError(f"{name}: {text!r} is not a JSON object", param=name)
    try:
        config_files.check_model(name, overrides)
    except CheckpointError as error:
        raise ConfigError(error.message, param=name) from None
    return overrides


def _with_theta(overrides: dict[str, Any], hf: Mapping[str, Any]) -> dict[str, Any]:
    """The flag's `rope_scaling` with the theta of config.json's `rope_parameters`, where it stretches that rope."""
    scaling, own = overrides.get("rope_scaling"), hf.get("rope_parameters") or {}
    theta = None if hf.get("rope_theta") or "rope_parameters" in overrides else own.get("rope_theta")
    if not scaling or theta is None:
        return overrides
    return {**overrides, "rope_scaling": {"rope_theta": theta, **scaling}}


def _read_hf(folder: Path) -> dict[str, Any]:
    if find(folder, "config.json") is None:
        _check_format(folder)
    hf = config_files.text_model(read_json(folder, "config.json"))
    config_files.check_model(folder / "config.json", hf)
    return hf


def _read_adapted(folder: Path) -> dict[str, Any]:
    """config.json, with what an adapter's files say of its model."""
    return with_head(folder, with_code(folder, _read_hf(folder)))


def _tell_of_setfit(folder: Path) -> None:
    if find(folder, _SETFIT) is not None:
        logger.warning("%s: SetFit's head is a pickle, which is never executed: texts get vectors, no labels", folder)


def _check_format(folder: Path) -> None:
    """CheckpointError for a folder that has no config.json since it is not in transformers' format."""
    found = next((name for name in _FORMATS if find(folder, name) is not None), None)
    if found is not None:
        raise CheckpointError(f"{folder / 'config.json'} is missing, and {found} is there: {_FORMATS[found]}")
    if find(folder, ADAPTER_CONFIG) is not None:
        raise CheckpointError(
            f"{folder / 'config.json'} is missing beside {ADAPTER_CONFIG}; an adapter (LoRA) in a folder of its own is "
            "put together with its base where it is at the top of the checkpoint; merge it with peft, "
            "merge_and_unload() and save_pretrained(), and serve that folder"
        )
    if any(path.suffix == ".gguf" for path in folder.glob("*.gguf")):
        raise CheckpointError(
            f"{folder / 'config.json'} is missing, and there are GGUF files, which are not read; take the safetensors "
            "checkpoint that they were made from"
        )


def _empty_prompts(router: Router | None) -> dict[str, str]:
    """A prompt for each route, so that it can be asked for by its name."""
    return dict.fromkeys(router.tasks, "") if router else {}
