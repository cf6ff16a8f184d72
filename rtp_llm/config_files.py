"""What the JSON files of a checkpoint may say: the kind of each value that is read, and settings that are not served.

A value of another kind is an error that names file, key and value before any weight is read. Of sentence-transformers'
settings, those that would change numbers and are not served are refused by name; an unknown key is logged.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rtp_llm.errors import CheckpointError

logger = logging.getLogger(__name__)


class Kind(NamedTuple):
    """What a key may hold: `words` for messages, and whether null may stand there, as if the key were absent."""

    words: str
    fits: Callable[[Any], bool]
    nullable: bool = True


def _whole(least: int, most: int, *, nullable: bool = True) -> Kind:
    words = f"a whole number from {least} to {most:,}"
    return Kind(words, lambda value: type(value) is int and least <= value <= most, nullable)


def _all(kind: Kind, keys: str) -> dict[str, Kind]:
    """The same kind for each of the keys, which have spaces between them."""
    return dict.fromkeys(keys.split(), kind)


def _are_whole(value: Any) -> bool:
    return all(type(number) is int for number in (value if isinstance(value, list) else [value]))


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


# Generous: the largest models that exist stay below by a factor of four or more.
_SIZE, _LAYERS, _POSITIONS = 1 << 20, 4096, 1 << 22
_VOCABULARY = (1 << 31) - 1
_FLAG = Kind("true or false", lambda value: type(value) is bool)
_TEXT = Kind("a string", lambda value: isinstance(value, str))
_TEXTS = Kind(
    "a list of strings", lambda value: isinstance(value, list) and all(isinstance(text, str) for text in value)
)
_WORDS = Kind("a string or a list of strings", lambda value: _TEXT.fits(value) or _TEXTS.fits(value))
_NUMBERS = Kind(
    "a list of whole numbers",
    lambda value: isinstance(value, list) and all(type(number) is int for number in value),
)
_OBJECT = Kind("an object", lambda value: isinstance(value, dict))
_POSITIVE = Kind("a positive number", _is_positive)

# Hugging Face's name of an activation -> ours.
ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu", "tanh": "tanh",
}  # fmt: skip


def activation(hf: Mapping[str, Any], key: str, default: str = "gelu") -> str:
    """Our name of the activation that config.json has under `key`; CheckpointError for one that is not known."""
    name = hf.get(key, default)
    if name not in ACTIVATIONS:
        raise CheckpointError(f"config.json: {key} {name!r} is not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


# model_type of a model that reads media beside texts -> that of its `text_config`.
_WITH_TOWERS = {
    "embedding_gemma2": "embedding_gemma2_text", "clip": "clip_text_model", "qwen3_vl": "qwen3_vl_text",
}  # fmt: skip
_PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")

MODEL: dict[str, Kind] = {
    # Sizes, those first that null does not stand for.
    **_all(
        _whole(1, _SIZE, nullable=False),
        "hidden_size num_attention_heads intermediate_size embedding_size relative_attention_num_buckets dim "
        "hidden_dim n_heads d_model d_kv d_ff num_heads block_ff_dim encoder_attention_heads decoder_attention_heads "
        "encoder_ffn_dim decoder_ffn_dim",
    ),
    **_all(
        _whole(1, _SIZE),
        "num_key_value_heads head_dim num_labels n_embd n_head n_inner n_layer attention_head_size pooler_hidden_size "
        "lora_rank embedding_dim hidden_size_per_layer_input global_head_dim num_global_key_value_heads conv_L_cache "
        "block_multiple_of",
    ),
    **_all(
        _whole(0, _SIZE),
        "num_experts moe_top_k moe_every_n_layers type_vocab_size task_type_vocab_size conv_kernel_size projection_dim",
    ),
    "position_buckets": _whole(-1, _SIZE),
    # Numbers of layers.
    **_all(_whole(1, _LAYERS, nullable=False), "num_hidden_layers n_layers num_layers encoder_layers decoder_layers"),
    **_all(
        _whole(1, _LAYERS),
        "num_hidden_groups inner_group_num start_layer global_attn_every_n_layers sliding_window_pattern",
    ),
    "max_window_layers": _whole(0, _LAYERS),
    "full_attn_idxs": _NUMBERS,
    "cutoff_layers": Kind("a whole number, or a list of such", _are_whole),
    # Of tokens: positions, distances, ids.
    **_all(
        _whole(1, _POSITIONS),
        "max_position_embeddings original_max_position_embeddings n_positions max_trained_positions",
    ),
    "relative_attention_max_distance": _whole(1, _POSITIONS, nullable=False),
    "max_relative_positions": _whole(-1, _POSITIONS),
    "vocab_size": _whole(1, _VOCABULARY, nullable=False),
    **_all(_whole(0, _VOCABULARY), "local_attention sliding_window"),
    "pad_token_id": _whole(-1, _VOCABULARY),
    "decoder_start_token_id": _whole(0, _VOCABULARY),
    "eos_token_id": Kind("a whole number, or a list of such", _are_whole),
    # Real numbers.
    **_all(
        _POSITIVE._replace(nullable=False),
        "layer_norm_eps rms_norm_eps norm_eps layer_norm_epsilon query_pre_attn_scalar scale_emb scale_depth "
        "lora_alpha",
    ),
    **_all(
        _POSITIVE,
        "rope_theta rope_local_base_freq global_rope_theta local_rope_theta rotary_emb_base partial_rotary_factor "
        "rotary_scaling_factor attn_logit_softcapping final_logit_softcapping temperature block_ffn_dim_multiplier",
    ),
    # True or false. A null is_causal would be true in some of transformers' attentions alone.
    **_all(_FLAG._replace(nullable=False), "is_causal block_auto_adjust_ff_dim"),
    **_all(
        _FLAG,
        "is_decoder is_gated_act add_cross_attention attention_bias mlp_bias norm_bias conv_bias use_sliding_window "
        "output_hidden_states tie_word_embeddings use_bidirectional_attention relative_attention share_att_key "
        "position_biased_input use_task_id scale_embedding talking_head",
    ),
    # Words. classifier_activation is of ModernBERT a name, of MobileBERT true or false.
    **_all(
        _TEXT,
        "model_type hidden_act hidden_activation activation activation_function dense_act_fn feed_forward_proj "
        "feed_forward_type lora_task position_embedding_type classifier_pooling clf_pooling pooling pooler_hidden_act "
        "norm_rel_ebd sbert_ce_default_activation_function",
    ),
    "classifier_activation": Kind("a string", lambda value: isinstance(value, (str, bool))),
    "problem_type": Kind(f"one of {', '.join(_PROBLEMS)}", lambda value: value in _PROBLEMS),
    "pos_att_type": _WORDS,
    **_all(_TEXTS, "architectures layer_types lora_adaptations"),
    **_all(
        _OBJECT,
        "auto_map auto_mapping id2label rope_scaling rope_parameters sentence_transformers per_layer_config "
        "text_config text_config_dict",
    ),
}
ROPE: dict[str, Kind] = {
    **_all(_TEXT, "rope_type type"),
    **_all(_POSITIVE, "factor rope_theta beta_fast beta_slow mscale mscale_all_dim attention_factor"),
    **_all(_POSITIVE, "low_freq_factor high_freq_factor"),
    "original_max_position_embeddings": _whole(1, _POSITIONS),
    "partial_rotary_factor": _POSITIVE,
    "truncate": _FLAG,
}
_PROMPTS = Kind(
    "an object of strings",
    lambda value: isinstance(value, dict) and all(text is None or isinstance(text, str) for text in value.values()),
)
# config_sentence_transformers.json
SENTENCE: dict[str, Kind] = {
    "prompts": _PROMPTS,
    **_all(_TEXT, "default_prompt_name activation_fn model_type similarity_fn_name"),
    # PyLate's
    **_all(_TEXT, "query_prefix document_prefix"),
    **_all(_whole(1, _VOCABULARY), "query_length document_length max_active_dims"),
    **_all(_FLAG, "do_query_expansion attend_to_expansion_tokens attend_to_mask_tokens"),
    "skiplist_words": _TEXTS,
    "query_expansion": _OBJECT,
    "truncate_dim": _whole(1, _SIZE),
}
# sentence_bert_config.json
TRANSFORMER: dict[str, Kind] = {
    **_all(_whole(1, _VOCABULARY), "max_seq_length query_length document_length"),
    "do_lower_case": _FLAG,
    **_all(_TEXT, "transformer_task module_output_name"),
    **_all(_OBJECT, "modality_config processing_kwargs query_expansion"),
    **_all(_OBJECT, "config_args config_kwargs model_args model_kwargs tokenizer_args processor_kwargs"),
}
MODULE: dict[str, Kind] = {
    "idx": _whole(0, 1 << 16),
    **_all(_TEXT._replace(nullable=False), "path type"),
}
# router_config.json
ROUTER: dict[str, Kind] = _all(_OBJECT, "types structure parameters")
ROUTER_PARAMETERS = {"default_route": _TEXT, "allow_empty_key": _FLAG, "route_mappings": _OBJECT}
TOKEN_WEIGHTS = {"frozen": _FLAG, "path": _TEXT}
POOLING: dict[str, Kind] = {
    "pooling_mode": _WORDS,
    "include_prompt": _FLAG,
    **_all(_whole(1, _SIZE), "embedding_dimension word_embedding_dimension"),
}
EXPANSION: dict[str, Kind] = {"length": _whole(1, _POSITIONS), "attend": _FLAG, **_all(_TEXT, "strategy token")}
MASK: dict[str, Kind] = {
    "skiplist_words": _TEXTS,
    "skiplist_tasks": _WORDS,
    "keep_only_token_ids": _NUMBERS,
}
TOKEN_POOLING: dict[str, Kind] = {
    "pool_factor": _POSITIVE,
    "num_protected_tokens": _whole(0, _VOCABULARY),
    "normalize_embeddings": _FLAG,
    "tasks": _WORDS,
}
# artifact.metadata of ColBERT's authors
ARTIFACT: dict[str, Kind] = {
    **_all(_TEXT, "query_token_id doc_token_id"),
    **_all(_whole(1, _POSITIONS), "query_maxlen doc_maxlen"),
    **_all(_FLAG, "attend_to_mask_tokens mask_punctuation"),
}
SPLADE: dict[str, Kind] = {
    **_all(_TEXT, "pooling_strategy activation_function"),
    **_all(_whole(1, _VOCABULARY), "embedding_dimension word_embedding_dimension"),
}
DENSE: dict[str, Kind] = {
    **_all(_whole(1, _SIZE, nullable=False), "in_features out_features"),
    **_all(_FLAG, "bias use_residual"),
    **_all(_TEXT, "activation_function module_input_name module_output_name"),
}


def _is_token(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("content"), str))


def _are_tokens(value: Any) -> bool:
    return isinstance(value, (list, dict)) and all(map(_is_token, value.values() if isinstance(value, dict) else value))


def _are_tokens_by_id(value: Any) -> bool:
    if not isinstance(value, dict) or any(isinstance(token, str) for token in value.values()):
        return False
    return all(key.isdecimal() and _is_token(token) for key, token in value.items())


TOKENIZER: dict[str, Kind] = {
    **_all(_FLAG, "do_lower_case strip_accents tokenize_chinese_chars add_prefix_space trim_offsets"),
    **_all(_FLAG, "split_special_tokens split_by_punct keep_accents"),
    "extra_ids": _whole(0, 1 << 16, nullable=False),
    **_all(Kind("a list of tokens", _are_tokens), "additional_special_tokens extra_special_tokens"),
    "added_tokens_decoder": Kind("an object of tokens by their ids", _are_tokens_by_id),
    **_all(_TEXT, "tokenizer_class truncation_side"),
    **{
        f"{role}_token": Kind("a string, or an object with its content", _is_token)
        for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
    },
    "model_input_names": _TEXTS,
    "model_max_length": Kind("a number", lambda value: type(value) in (int, float)),
}
# Of config_sentence_transformers.json, what says who wrote it, and how vectors are compared once they are there.
UNREAD = frozenset(("__version__", "model_type", "requirements", "similarity_fn_name", "keep_in_fp32_modules"))
# What compressed-tensors says of the linear layers that are computed as they are stored.
_WEIGHTS_8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
_ACTIVATIONS_8 = {"num_bits": 8, "type": "int", "dynamic": True}


def check(where: Path | str, values: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
    """CheckpointError for the first of `kinds` that `values` has and that is of another kind."""
    for key, kind in kinds.items():
        value = values.get(key)
        if key not in values or (value is None and kind.nullable) or kind.fits(value):
            continue
        shown = "null" if value is None else f"{value!r:.100}"
        raise CheckpointError(f"{where}: {key} is {shown}; {kind.words} is needed")


def check_model(where: Path | str, values: Mapping[str, Any]) -> None:
    """`check` of config.json, or of what stands over it, with its rope parameters."""
    check(where, values, MODEL)
    _check_layers(where, values)
    stored_quantization(values, where)
    for key in ("rope_scaling", "rope_parameters"):
        parameters = values.get(key) or {}
        check(f"{where}: {key}", parameters, ROPE)
        for kind, own in parameters.items():
            if isinstance(own, dict):  # of one kind of layer
                check(f"{where}: {key}: {kind}", own, ROPE)


def _check_layers(where: Path | str, values: Mapping[str, Any]) -> None:
    """CheckpointError for settings of single layers, but of a model that is known to have them."""
    by_layer = values.get("per_layer_config") or {}
    if by_layer and values.get("model_type") not in _WITH_TOWERS.values():
        layers = ", ".join(by_layer)
        raise CheckpointError(
            f"{where}: per_layer_config gives layers {layers} settings of their own; a model is served whose layers "
            "all have the same"
        )
    if not all(key.isdecimal() and isinstance(own, dict) for key, own in by_layer.items()):
        raise CheckpointError(
            f"{where}: per_layer_config is {by_layer!r:.100}; an object for a layer's number is needed"
        )


def text_model(hf: Mapping[str, Any]) -> dict[str, Any]:
    """config.json; of a model that reads media too, what it says of its model for texts, which alone is served."""
    name, own = _WITH_TOWERS.get(str(hf.get("model_type"))), hf.get("text_config") or {}
    if hf.get("text_config_dict") is not None:  # of an older CLIP, which transformers reads instead
        own = hf["text_config_dict"]
    if name is None or not isinstance(own, dict):
        return dict(hf)
    kept = ("architectures", "quantization_config", "projection_dim", "tie_word_embeddings")
    above = {key: hf[key] for key in kept if key in hf}
    return {**own, **above, "model_type": name}


def stored_quantization(values: Mapping[str, Any], where: Path | str = "config.json") -> Literal["none", "int8"]:
    """How config.json says that the linear layers are stored; CheckpointError for a form that is not read.

    Read is what `rtp-llm quantize` writes, compressed-tensors' int-quantized: int8, a scale for each row of a weight,
    activations quantised when they are computed.
    """
    stored = values.get("quantization_config")
    if not stored:
        return "none"
    method = stored.get("quant_method") if isinstance(stored, dict) else None
    groups = stored.get("config_groups") if isinstance(stored, dict) else None
    found = list(groups.values()) if isinstance(groups, dict) else []
    is_read = method == "compressed-tensors" and found and stored.get("format") == "int-quantized"
    if not is_read or not all(_has(group, "weights", _WEIGHTS_8) for group in found):
        raise CheckpointError(
            f"{where}: quantization_config ({method or 'of an unknown method'}): quantised weights are not read; use "
            "the fp32, fp16 or bf16 checkpoint, and --quantization int8 where 8 bits are wanted. This form is not "
            "read; of compressed-tensors, int-quantized with 8 bits and a scale for each channel is"
        )
    if not all(_has(group, "input_activations", _ACTIVATIONS_8) for group in found):
        raise CheckpointError(
            f"{where}: quantization_config (compressed-tensors): weights in 8 bits are read where input_activations "
            "are dynamic and in 8 bits too, since both are computed so; use the fp32, fp16 or bf16 checkpoint, and "
            "--quantization int8_weights where weights alone are to be in 8 bits"
        )
    return "int8"


def _has(group: Any, key: str, wanted: Mapping[str, Any]) -> bool:
    """Whether an object says all that is `wanted` under `key`."""
    said = group.get(key) if isinstance(group, dict) else None
    return isinstance(said, dict) and all(said.get(name) == value for name, value in wanted.items())


def log_unknown(where: Path, values: Mapping[str, Any], known: Iterable[str]) -> None:
    """A line for keys that nobody here has heard of: a newer sentence-transformers may mean something by them."""
    unknown = sorted(set(values) - set(known))
    if unknown:
        logger.warning("%s: %s not known here and not heeded", where, ", ".join(unknown))


def check_sentence(where: Path, settings: Mapping[str, Any]) -> None:
    """config_sentence_transformers.json: kinds, and a line for what is not known of it."""
    check(where, settings, SENTENCE)
    log_unknown(where, settings, {*SENTENCE, *UNREAD})


def labels(where: Path, hf: Mapping[str, Any], num_scores: int | None = None) -> tuple[str, ...]:
    """id2label in the order of its numbers; transformers' own names, LABEL_0 and so on, where it is absent.

    `num_scores`: of a chain of modules, which may give other than the labels that config.json names.
    """
    names = hf.get("id2label")
    if names is None or (num_scores is not None and len(names) != num_scores):
        return tuple(f"LABEL_{i}" for i in range(num_scores or hf.get("num_labels") or 2))
    if not isinstance(names, dict) or {str(key) for key in names} != {str(i) for i in range(len(names))}:
        raise CheckpointError(f"{where}: id2label must name the outputs 0, 1, 2, …; it is {names!r:.200}")
    return tuple(str(names[str(i)]) for i in range(len(names)))
