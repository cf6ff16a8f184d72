"""Which architecture a checkpoint's config.json means: by its model_type, or the class that it names first."""

import re
from collections.abc import Mapping
from typing import Any

# Stem of an entry of `architectures` in config.json -> its model_type, for files without one.
ARCHITECTURES = {
    "Bert": "bert", "Roberta": "roberta", "XLMRoberta": "xlm-roberta", "Camembert": "camembert", "Electra": "electra",
    "Ernie": "ernie", "MegatronBert": "megatron-bert", "XLMRobertaXL": "xlm-roberta-xl",
    "Albert": "albert", "JinaBert": "jina_bert", "JinaEmbeddingsV3": "jina_embeddings_v3",
    "DistilBert": "distilbert", "MPNet": "mpnet", "DebertaV2": "deberta-v2", "Deberta": "deberta", "Bart": "bart",
    "CLIPText": "clip_text_model",
    "T5": "t5", "T5Encoder": "t5", "MT5": "mt5", "MT5Encoder": "mt5",
    "Gte": "gte", "New": "new", "ModernBert": "modernbert", "NomicBert": "nomic_bert", "Qwen2": "qwen2",
    "Qwen3": "qwen3", "Llama": "llama", "LlamaBidirectional": "llama_bidirec", "Mistral": "mistral", "Gemma": "gemma",
    "Gemma2": "gemma2", "Gemma3Text": "gemma3_text", "EuroBert": "eurobert", "LayerWiseMiniCPM": "minicpm",
    "Lfm2": "lfm2",
}  # fmt: skip
_ARCHITECTURE = re.compile(r"(\w+?)(?:Model|For[A-Z]\w*)")
# ColBERT's authors' class.
HF_COLBERT = "HF_ColBERT"
# A model_type that several architectures share, and `position_embedding_type` of config.json -> the one that has both.
_SHARED_NAMES: dict[tuple[str, Any], str] = {
    ("bert", "alibi"): "jina_bert",
    ("xlm-roberta", "rotary"): "jina_embeddings_v3",
    # jina-colbert-v2, whose config.json has no model_type.
    (HF_COLBERT, "rotary"): "jina_embeddings_v3",
}
# FlagEmbedding's MiniCPM, with a head for each of its later layers; jina-reranker-v3; jina-embeddings-v5.
LAYERWISE, LISTWISE, JINA_V5 = "LayerWiseMiniCPMForCausalLM", "JinaForRanking", "JinaEmbeddingsV5Model"
# A CLIP's tower for texts.
CLIP_TEXT = "clip_text_model"
# Classes of their authors' own code, by the first architecture of config.json, whatever its model_type.
OWN_CLASSES = {
    LISTWISE: "jina_reranker_v3",
    "VoyageQwen3BidirectionalEmbedModel": "voyage_qwen3",
    JINA_V5: "jina_embeddings_v5",
    "PPLXQwen3Model": "bidirectional_pplx_qwen3",
    "Lfm2BidirectionalModel": "lfm2_bidirec",
    "Lfm2BidirectionalForMaskedLM": "lfm2_bidirec",
}
# Where classes come from that do what their model_type says, or hold one that does.
_LIBRARIES = ("transformers", "torch")
# Stems of transformers' own classes of decoders, and what FSDP once put before a class's name.
_DECODERS = frozenset(
    "Qwen2 Qwen3 Qwen3VL Qwen3VLText Llama Mistral Ministral3 Gemma Gemma2 Gemma3 Gemma3Text Lfm2".split()
)
_WRAPPED = "FSDP"


def architecture_of(hf: Mapping[str, Any]) -> str:
    """The class that config.json names first; empty where it names none."""
    return str(next(iter(hf.get("architectures") or ()), ""))


def own_code(hf: Mapping[str, Any]) -> str:
    """Which file of a decoder names code of the authors' own, and how; empty: none does.

    In config.json's auto_map AutoModel's entry, or that of the class which `architectures` names first: a model with a
    head has the latter alone. In adapter_config.json `auto_mapping`, where peft notes the class of the base that it
    was trained on. Else that first class itself, where it is none of transformers': LLM2Vec, whose LlamaBiModel looks
    both ways, saves no auto_map.
    """
    named, entries, mapping = architecture_of(hf), hf.get("auto_map") or {}, hf.get("auto_mapping") or {}
    for key, code in entries.items():
        if key == "AutoModel" or str(code).rpartition(".")[2] == named:
            return f"config.json: auto_map has {key} {code!r}"
    library, name = str(mapping.get("parent_library") or ""), mapping.get("base_model_class")
    is_plain = library.partition(".")[0] in ("", *_LIBRARIES)
    if name and not is_plain:
        return f"adapter_config.json: auto_mapping has {f'{library}.{name}'!r}"
    match = _ARCHITECTURE.fullmatch(named.removeprefix(_WRAPPED))
    is_known = not named or (match and match[1] in _DECODERS)
    return "" if is_known else f"config.json: architectures has {named!r}"


def model_type_of(hf: Mapping[str, Any], flag: str = "auto") -> str:
    """The flag, else config.json's model_type, else that of its first architecture, or this one where it is not known.

    A class of its authors' own says more than a model_type. A name that several architectures share, as
    JinaBERT has BERT's, is told apart by the kind of its positions.
    """
    named = architecture_of(hf)
    match = _ARCHITECTURE.fullmatch(named)
    said = OWN_CLASSES.get(named) or hf.get("model_type") or ARCHITECTURES.get(match[1] if match else "", named)
    name = str(said) if flag == "auto" else flag
    return _SHARED_NAMES.get((name, hf.get("position_embedding_type")), name)
