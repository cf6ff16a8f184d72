"""A language model as a reranker: the logit of one answer less that of the other, at the last token.

The head over the vocabulary is folded to one row, in fp32. Equals Qwen3-Reranker's transformers example,
sentence-transformers' LogitScore and, of yes alone, FlagEmbedding's FlagLLMReranker.
"""

import numpy as np

from rtp_llm.checkpoint import TensorSource, check_finite, check_floats, open_tensors, read_json
from rtp_llm.core import FloatArray
from rtp_llm.errors import CheckpointError, ConfigError
from rtp_llm.tasks import TaskSource
from rtp_llm.tasks.head import Head, Linear

# Where the head stands; those after it are the input's table, which a tied head shares.
_NAMES = (
    "lm_head.weight",
    *(f"{prefix}embed_tokens.weight" for prefix in ("model.", "", "model.language_model.", "language_model.")),
)
# What transformers' configurations have where config.json says nothing.
_TIED = ("gemma", "gemma2", "gemma3_text")
_DEFAULT_CAPS = {"gemma2": 30.0}


def load_yes_no(source: TaskSource) -> Head:
    """The folded head; ConfigError for a model whose prompt is not known, CheckpointError where a row is missing."""
    config = source.model_config
    if not config.is_language_reranker and config.logit_score is None:
        raise ConfigError(
            f"task_type: {config.transformer_folder} is a language model of type {config.model_type!r}; of those, "
            "Qwen3 and Gemma alone are served as rerankers without a LogitScore module and a chat template, since the "
            "prompts of others are not known",
            param="task_type",
        )
    cap = config.hf.get("final_logit_softcapping", _DEFAULT_CAPS.get(config.model_type))
    if cap is not None:
        raise CheckpointError(
            f"config.json: final_logit_softcapping {cap!r}; the logit of a reranker is served where it is null"
        )
    tensors = open_tensors(config.transformer_folder)
    yes, no = _answers(source)
    name = _head_name(tensors, bool(config.hf.get("tie_word_embeddings", config.model_type in _TIED)))
    row = _row(tensors, name, yes, source.hidden_size)
    if no is not None:
        row = row - _row(tensors, name, no, source.hidden_size)
    head = Head("lasttoken", None, Linear(source.ops.matrix(row[None]), None), num_labels=1)
    tensors.close()
    return head


def _answers(source: TaskSource) -> tuple[int, int | None]:
    """The ids of yes and no; LogitScore may have but one."""
    module, is_vl = source.model_config.logit_score, source.model_config.is_qwen3_vl
    settings = {} if module is None else read_json(module.folder, "config.json", required=not is_vl)
    # NOTE: Qwen3-VL-Reranker-8B has been published with a modules.json that leads to another folder.
    if module is not None and not (is_vl and "true_token_id" not in settings):
        yes, no = settings.get("true_token_id"), settings.get("false_token_id")
        if type(yes) is not int or not (no is None or type(no) is int):
            raise CheckpointError(
                f"{module.folder / 'config.json'}: true_token_id {yes!r}, false_token_id {no!r}; a token's id is "
                "needed, and of false_token_id an id or null"
            )
        return yes, no
    if source.model_config.is_flag_reranker:
        answer = source.vocabulary.token_id("Yes")
        if answer is None:
            raise CheckpointError(f"{source.model_config.folder}: its tokenizer lacks the word 'Yes'")
        return answer, None
    yes, no = (source.vocabulary.token_id(word) for word in ("yes", "no"))
    if yes is None or no is None:
        raise CheckpointError(f"{source.model_config.folder}: its tokenizer lacks the words 'yes' and 'no'")
    return yes, no


def _head_name(tensors: TensorSource, tied: bool) -> str:
    """The tensor that has the head's rows; one that is not tied has its own."""
    names = _NAMES if tied else _NAMES[:1]
    name = next((name for name in names if name in tensors.tensors), None)
    if name is None:
        known = f"has none of {', '.join(names)}" if tied else f"has no {names[0]}, and tie_word_embeddings is not true"
        raise CheckpointError(
            f"{tensors.path} {known}: a reranker needs the head over the vocabulary; download it again"
        )
    check_floats(tensors, name)
    return name


def _row(tensors: TensorSource, name: str, token_id: int, hidden_size: int) -> FloatArray:
    """The head's row for one token [H]."""
    shape = tensors.tensors[name].shape
    if len(shape) != 2 or shape[1] != hidden_size or not 0 <= token_id < shape[0]:
        raise CheckpointError(f"{tensors.path}: {name} {list(shape)} has no row {token_id} of {hidden_size} numbers")
    (row,) = tensors.read_part(name, 0, token_id, token_id + 1)
    check_finite(row, tensors, name)
    return np.asarray(row)
