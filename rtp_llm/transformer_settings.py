"""sentence-transformers' settings of its Transformer: what is served of them, and what they put over other files."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rtp_llm.config_files import TRANSFORMER, check, check_model, log_unknown
from rtp_llm.errors import CheckpointError

logger = logging.getLogger(__name__)

# sentence-transformers once named this file after the architecture.
FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# Settings of sentence_bert_config.json by which a text's vector stays what it is.
_HARMLESS = frozenset(("__version__", "unpad_inputs"))
# Arguments of from_pretrained that say how the model is held and by which kernels it is computed.
_HOLDING = frozenset(
    "add_pooling_layer attn_implementation device_map low_cpu_mem_usage max_memory offload_folder unpad_inputs "
    "use_memory_efficient_attention use_safetensors variant".split()
)
# Those that say in which dtype it is computed, and the values that leave it open.
_PRECISION, _ANY = frozenset(("dtype", "torch_dtype")), (None, "auto")
# Arguments of from_pretrained that say where files are, or how a batch is padded.
_LOADING = frozenset(
    "cache_dir code_revision force_download local_files_only padding_side revision subfolder token trust_remote_code "
    "use_auth_token use_fast".split()
)
_PADDING = frozenset(("padding", "pad_to_multiple_of", "return_tensors", "return_attention_mask"))
# Arguments of apply_chat_template that are no variables of the template.
_NOT_OF_A_TEMPLATE = frozenset(
    "common_kwargs continue_final_message conversation max_length messages padding return_assistant_"
    "tokens_mask return_dict return_tensors sanitize_control_tokens tokenize tokenizer_kwargs truncation".split()
)
_TASKS = ("feature-extraction", "sequence-classification", "text-generation", "fill-mask", "any-to-any")
_NAME = re.compile(r"[\w.-]*")
_OUTPUTS = ("last_hidden_state", "logits")
# By which a CLIP gives a text's vector, and what sentence-transformers calls that, by the release of transformers.
_FEATURES, _FEATURE_OUTPUTS = "get_text_features", ("pooler_output", None)


def check_settings(where: Path, settings: Mapping[str, Any]) -> None:
    """sentence_bert_config.json: kinds, and what is not served of it."""
    check(where, settings, TRANSFORMER)
    log_unknown(where, settings, {*TRANSFORMER, *_HARMLESS})
    for key in ("model_args", "model_kwargs"):
        _tell_of_arguments(where, key, settings.get(key) or {})
    task = settings.get("transformer_task")
    if task is not None and task not in _TASKS:
        raise CheckpointError(f"{where}: transformer_task {task!r} is not served; {', '.join(_TASKS)} are")
    _check_modalities(where, settings.get("modality_config") or {})
    processing: Mapping[str, Any] = settings.get("processing_kwargs") or {}
    for key in ("common", "text"):
        values = processing.get(key) or {}
        changing = sorted(set(values) - _PADDING) if isinstance(values, dict) else [repr(values)]
        if changing:
            raise CheckpointError(
                f"{where}: processing_kwargs: {key}: {', '.join(changing)} is not served; "
                "say it in tokenizer_config.json, or as max_seq_length"
            )
    options = processing.get("chat_template") or {}
    unserved = sorted(set(options) & _NOT_OF_A_TEMPLATE) if isinstance(options, dict) else [f"{options!r:.100}"]
    if unserved:
        raise CheckpointError(
            f"{where}: processing_kwargs: chat_template: {', '.join(unserved)} is not served; variables of the "
            "template are, add_generation_prompt and restore_suffix"
        )
    template = options.get("chat_template") or ""
    if not isinstance(template, str) or not _NAME.fullmatch(template):
        raise CheckpointError(
            f"{where}: processing_kwargs: chat_template: chat_template is {template!r:.50}; a template is served that "
            "has a file, which is named here"
        )


def _tell_of_arguments(where: Path, key: str, given: Mapping[str, Any]) -> None:
    """A line for arguments of from_pretrained that are not heeded here."""
    unread = sorted({*given} - _HOLDING - _LOADING - _PRECISION)
    if unread:
        logger.warning(
            "%s: %s: %s not heeded; where it changes what is computed, say it in config.json, or by "
            "--json_model_override_args", where, key, ", ".join(unread),
        )  # fmt: skip
    asked = [f"{name} {given[name]!r:.80}" for name in sorted(_PRECISION & {*given}) if given[name] not in _ANY]
    if asked:
        logger.warning("%s: %s: %s not heeded; --act_type says in which dtype it is computed", where, key,
                       ", ".join(asked))  # fmt: skip


def _check_modalities(where: Path, modalities: Mapping[str, Any]) -> None:
    """Texts must go through the whole model; what a chat template makes of them is the tokenizer's to judge."""
    if not modalities:
        return
    text = modalities.get("text", modalities.get("message"))
    method, output = (text.get("method"), text.get("method_output_name")) if isinstance(text, dict) else ("", None)
    is_served = output in (_FEATURE_OUTPUTS if method == _FEATURES else _OUTPUTS)
    if method not in ("forward", _FEATURES) or not is_served:
        raise CheckpointError(
            f"{where}: modality_config: text is {text!r:.100}; only the method forward and its last_hidden_state "
            "or logits are served, and get_text_features of a CLIP"
        )


def model_settings(where: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What sentence_bert_config.json puts over config.json, as transformers' AutoConfig would take it."""
    given = settings.get("config_args", settings.get("config_kwargs")) or {}  # the older name comes first
    changes = {key: value for key, value in given.items() if key not in _LOADING}
    if "is_causal" in changes:  # which configurations do not declare, so that AutoConfig drops it
        raise CheckpointError(f"{where}: config_kwargs: is_causal is heeded in config.json alone; say it there")
    check_model(where, changes)
    return changes


def text_limit(where: Path, settings: Mapping[str, Any]) -> int | None:
    """Tokens of one input by sentence_bert_config.json; None where it does not say."""
    changes = {**(settings.get("tokenizer_args", settings.get("processor_kwargs")) or {})}
    limit = changes.pop("model_max_length", None)
    changing = sorted(set(changes) - _LOADING)
    if changing:
        raise CheckpointError(
            f"{where}: processor_kwargs: {', '.join(changing)} is not served; say it in tokenizer_config.json"
        )
    check(where, {"model_max_length": limit}, {"model_max_length": TRANSFORMER["max_seq_length"]})
    return limit or settings.get("max_seq_length")
