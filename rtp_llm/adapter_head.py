"""What an adapter in peft's files says of its model: a head that was trained beside the LoRA, with labels of its own;
and code of its own, by which the base was made when it was trained.

Source: peft, TaskType and PeftModelForSequenceClassification, which saves the head whole (modules_to_save), and
PeftModel.save_pretrained, which notes the base's class (auto_mapping) where there is no task_type.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rtp_llm.architectures import architecture_of, own_code
from rtp_llm.checkpoint import ADAPTER_CONFIG, OWN_CONFIG, find, open_tensors, read_json
from rtp_llm.config_files import MODEL, check

logger = logging.getLogger(__name__)

# Its task_type -> how the class of a model with such a head is called.
_KINDS = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification"}
_HEADS = ("classifier.out_proj.weight", "classifier.weight", "score.weight")
_ENDINGS = ("Model", "ForMaskedLM", "ForPreTraining", "ForCausalLM", *_KINDS.values())
# Keys by which a model is called, not computed.
_NAMES = ("architectures", "auto_map", "id2label", "problem_type")


def labelling_class(folder: Path) -> str:
    """The ending of the class, as ForSequenceClassification, by which an adapter with labels is read; else empty."""
    if find(folder, ADAPTER_CONFIG) is None:
        return ""
    return _KINDS.get(str(read_json(folder, ADAPTER_CONFIG).get("task_type")), "")


def with_code(folder: Path, hf: dict[str, Any]) -> dict[str, Any]:
    """config.json, with what names code of its own in the adapter's files: `auto_map` and `auto_mapping`.

    LLM2Vec's adapters have a config.json of their own; the base's is what transformers reads, and so is heeded.
    """
    if find(folder, ADAPTER_CONFIG) is None:
        return hf
    settings, own = read_json(folder, ADAPTER_CONFIG), read_json(folder, OWN_CONFIG, required=False)
    check(folder / ADAPTER_CONFIG, settings, {"auto_mapping": MODEL["auto_mapping"]})
    check(folder / OWN_CONFIG, own, {key: MODEL[key] for key in ("auto_map", "architectures")})
    others = [key for key in MODEL if key in own and key in hf and key not in _NAMES and own[key] != hf[key]]
    if others:
        logger.warning(
            "%s: the adapter's own config.json has %s otherwise than its base's, which is heeded, as by transformers; "
            "where the adapter's is meant, say it in --json_model_override_args", folder.name, ", ".join(others),
        )  # fmt: skip
    if own_code(own) and not own_code(hf):  # a decoder's class alone may be what tells
        hf = {**hf, "architectures": own.get("architectures") or hf.get("architectures")}
    named = {"auto_map": hf.get("auto_map") or own.get("auto_map"), "auto_mapping": settings.get("auto_mapping")}
    return {**hf, **{key: value for key, value in named.items() if value}}


def with_head(folder: Path, hf: dict[str, Any]) -> dict[str, Any]:
    """config.json as transformers would save it of the base with the adapter's head: its class and number of labels."""
    ending = labelling_class(folder)
    if not ending:
        return hf
    architecture = architecture_of(hf)
    num_labels = _num_labels(folder)
    if num_labels is None:
        if not architecture.endswith(ending):
            logger.warning(
                "%s: task_type is of a classifier, but there is no head (%s): if this is one all the same, say "
                "--task_type and --json_model_override_args '{\"num_labels\": 3}'",
                folder / ADAPTER_CONFIG,
                ", ".join(_HEADS),
            )
        return hf
    stem = next((architecture.removesuffix(end) for end in _ENDINGS if architecture.endswith(end)), architecture)
    return {**_with_labels(hf, num_labels), "architectures": [stem + ending]}


def _with_labels(hf: dict[str, Any], num_labels: int) -> dict[str, Any]:
    """The base's names of the labels stay where there are as many."""
    names = hf.get("id2label")
    if isinstance(names, Mapping) and len(names) == num_labels:
        return hf
    return {**{key: hf[key] for key in hf if key not in ("id2label", "label2id")}, "num_labels": num_labels}


def _num_labels(folder: Path) -> int | None:
    """Rows of the head's last layer; None where there is none."""
    source = open_tensors(folder)
    source.close()
    shape = next((source.tensors[name].shape for name in _HEADS if name in source.tensors), None)
    return shape[0] if shape else None
