"""Architectures: a model takes a packed batch to hidden states and knows nothing of tasks."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from itertools import chain
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import numpy as np

from rtp_llm.architectures import OWN_CLASSES, model_type_of
from rtp_llm.checkpoint import AdapterFolders, TensorSource, Weights
from rtp_llm.core import Batch, FloatArray, QuantizedWeight
from rtp_llm.errors import CheckpointError, ConfigError
from rtp_llm.models.adapted import adapt
from rtp_llm.ops import Ops, Tensor

# Gets a layer's number, from 0, and the hidden states [T, hidden_size] that go into it, once for each layer.
OnLayer: TypeAlias = Callable[[int, Tensor], None]
# Gets a layer's number and its queries, keys and values as `Ops.attention` reads them [T, ·].
OnKeys: TypeAlias = Callable[[int, Tensor], None]
# model_type (the original's and Hugging Face's names) -> (module, class).
MODELS: dict[str, tuple[str, str]] = {
    "bert": ("rtp_llm.models.bert", "Bert"),
    "roberta": ("rtp_llm.models.bert", "Roberta"),
    "xlm-roberta": ("rtp_llm.models.bert", "Roberta"),
    "camembert": ("rtp_llm.models.bert", "Roberta"),
    "gte": ("rtp_llm.models.gte", "Gte"),
    "new": ("rtp_llm.models.gte", "New"),
    "modernbert": ("rtp_llm.models.modernbert", "ModernBert"),
    "nomic_bert": ("rtp_llm.models.nomic_bert", "NomicBert"),
    "jina_embeddings_v3": ("rtp_llm.models.jina_v3", "JinaV3"),
    "jina_embeddings_v5": ("rtp_llm.models.jina_v5", "JinaV5"),
    "jina_bert": ("rtp_llm.models.jina_bert", "JinaBert"),
    "albert": ("rtp_llm.models.albert", "Albert"),
    "electra": ("rtp_llm.models.bert", "Electra"),
    "ernie": ("rtp_llm.models.ernie", "Ernie"),
    "megatron-bert": ("rtp_llm.models.prenorm_bert", "MegatronBert"),
    "megatron_bert": ("rtp_llm.models.prenorm_bert", "MegatronBert"),
    "xlm-roberta-xl": ("rtp_llm.models.prenorm_bert", "XlmRobertaXl"),
    "distilbert": ("rtp_llm.models.distilbert", "DistilBert"),
    "mpnet": ("rtp_llm.models.mpnet", "MPNet"),
    "deberta-v2": ("rtp_llm.models.deberta", "Deberta"),
    "deberta": ("rtp_llm.models.deberta_v1", "DebertaV1"),
    "dpr": ("rtp_llm.models.bert", "Dpr"),
    "bart": ("rtp_llm.models.bart", "Bart"),
    "clip_text_model": ("rtp_llm.models.clip", "ClipText"),
    "t5": ("rtp_llm.models.t5", "T5"),
    "mt5": ("rtp_llm.models.t5", "MT5"),
    "qwen2": ("rtp_llm.models.qwen", "Qwen2"),
    "qwen3": ("rtp_llm.models.qwen", "Qwen3"),
    "bidirectional_pplx_qwen3": ("rtp_llm.models.qwen", "PplxQwen3"),
    "voyage_qwen3": ("rtp_llm.models.qwen", "VoyageQwen3"),
    "jina_reranker_v3": ("rtp_llm.models.qwen", "JinaReranker"),
    "qwen3_vl_text": ("rtp_llm.models.qwen", "Qwen3VL"),
    "qwen_2": ("rtp_llm.models.qwen", "Qwen2"),
    "qwen_2_embedding": ("rtp_llm.models.qwen", "Qwen2Embedding"),
    "qwen_3": ("rtp_llm.models.qwen", "Qwen3"),
    "llama": ("rtp_llm.models.llama", "Llama"),
    "llama_bidirec": ("rtp_llm.models.llama", "LlamaBidirectional"),
    "mistral": ("rtp_llm.models.llama", "Mistral"),
    "ministral3": ("rtp_llm.models.llama", "Ministral3"),
    "ministral3_bidirec": ("rtp_llm.models.llama", "Ministral3Bidirectional"),
    "eurobert": ("rtp_llm.models.llama", "EuroBert"),
    "gemma": ("rtp_llm.models.gemma", "Gemma"),
    "gemma2": ("rtp_llm.models.gemma", "Gemma2"),
    "gemma3_text": ("rtp_llm.models.gemma", "Gemma3"),
    "embedding_gemma2_text": ("rtp_llm.models.embedding_gemma2", "EmbeddingGemma2"),
    "lfm2": ("rtp_llm.models.lfm2", "Lfm2"),
    "lfm2_bidirec": ("rtp_llm.models.lfm2", "Lfm2Bidirectional"),
    "minicpm": ("rtp_llm.models.minicpm", "MiniCpm"),
    "static_embedding": ("rtp_llm.models.static", "Static"),
}
_MEDIA = (
    "a model that reads images is not served, but for texts of CLIP, EmbeddingGemma 2, Qwen3-VL-Embedding and "
    "Qwen3-VL-Reranker, by the text_config of config.json; take an embedder for texts"
)
_WRITES = "it writes texts; take an embedder, such as Qwen3-Embedding or a BGE"
# What is deployed and not served, by model_type or architecture -> what to do instead.
_INSTEAD = {
    "nvembed": "take NVIDIA's llama-embed-nemotron-8b or llama-nemotron-embed-1b-v2",
    "cost_wise_gemma": "take bge-reranker-v2-gemma or bge-reranker-v2-m3",
    "bilingual": "where its code is XLM-RoBERTa's by another name, --model_type xlm-roberta serves it",
    "HHEMv2": "it needs its authors' code and prompt",
    "openai_privacy_filter": "take a token classifier that is a DeBERTa-v3, a ModernBERT or an XLM-RoBERTa",
    **dict.fromkeys(("longformer", "big_bird", "bigbird_pegasus"), "take a ModernBERT, which reads 8,192 tokens"),
    **dict.fromkeys(("qwen3_5", "qwen3_5_text"), "take Qwen3-Embedding, or pplx-embed-v1"),
    **dict.fromkeys(("mobilebert", "roformer"), "take a MiniLM, or for Chinese a BGE"),
    **dict.fromkeys(("siglip", "siglip2", "jina_clip", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"), _MEDIA),
    **dict.fromkeys(("gemma3", "jina_embeddings_v4", "lfm2_vl", "vit", "siglip_text_model"), _MEDIA),
    **dict.fromkeys(("gpt2", "gpt_neo", "gpt_neox", "bloom", "falcon", "opt"), _WRITES),
}  # fmt: skip


class Model(Protocol):
    """What a task and the runtime need of an architecture: a subclass, which says what it does otherwise than most.

    max_positions     the longest sequence that it was made for, in tokens
    learnt_positions  whether it can read no longer one
    causal            a token sees those before it only, so that the last one stands for all
    shares_prefixes   what it computes for a sequence's first tokens serves every sequence that begins with them
    kv_size           of a model that does: how many of the columns that `on_keys` gets, its last, are keys and values
    reads_host        what it asks of ops that may need numbers on the host for it ("relative" of attention, "experts"),
                      so that no CUDA graph of it serves: see TorchOps.reads_host
    gpu_dtype         of its activations on a GPU where nobody names one: fp16 has three bits more than bf16, but larger
                      numbers than 65504, as in decoders, overflow it
    adapters          names of those (LoRA) of which a sequence may choose one, by its place here
    needs_adapter     without one its hidden states mean nothing
    merged_adapter    the one that is in its weights, so that there is none to choose; empty: none is
    layers            in their order
    matrices          (layer, attribute) of each linear layer's weight -> the checkpoint's tensors that it is made of
    takes_adapters    it runs its ops through `adapted.chosen`, and its matrices stand as in the checkpoint
    tables            of such a model, attribute of each embedding table -> the checkpoint's tensor
    """

    hidden_size: int
    vocab_size: int
    max_positions: int
    learnt_positions: bool = False
    causal: bool = False
    shares_prefixes: bool = False
    kv_size: int = 0
    reads_host: tuple[str, ...] = ()
    gpu_dtype: Literal["fp16", "bf16"] = "bf16"
    adapters: tuple[str, ...] = ()
    needs_adapter: bool = False
    merged_adapter: str = ""
    layers: Sequence[Any]
    matrices: Mapping[tuple[int, str], tuple[str, ...]]
    takes_adapters: ClassVar[bool] = False
    tables: Mapping[str, str]

    @classmethod
    def load(cls, hf: Mapping[str, Any], source: TensorSource, ops: Ops) -> "Model":
        """By config.json, filled from the checkpoint's tensors, strictly: nothing missing, nothing left over."""

    def prepare(self, batch: Batch) -> Batch:
        """The packed batch with positions as this architecture counts them; on the host, before `Ops.upload`.

        `pack` has counted them from 0.
        """
        return batch

    def __call__(
        self, ops: Ops, batch: Batch, on_layer: OnLayer | None = None, on_keys: OnKeys | None = None
    ) -> Tensor:
        """Packed batch -> hidden_states [T, hidden_size], after the last layer's norm.

        Of a batch with `wanted` rows: [R, hidden_size]. The last layer computes no others; these have the same bits.
        What `on_layer` is called with and the result are transformers' `output_hidden_states`, in order. `on_keys` is
        for a model that shares prefixes.
        """


def matrix_sources(
    weights: Weights, num_layers: int, names: Sequence[str], suffix: str = ""
) -> dict[tuple[int, str], tuple[str, ...]]:
    """`Model.matrices`, of parameters that are called `layers.NUMBER.NAME` and the suffix; a layer may lack some."""
    places = {(i, name): f"layers.{i}.{name}{suffix}" for i in range(num_layers) for name in names}
    return {place: weights.sources(parameter) for place, parameter in places.items() if parameter in weights}


def gate_first(weight: FloatArray | QuantizedWeight) -> FloatArray | QuantizedWeight:
    """Rows of up, then gate, of one tensor -> gate, then up, as `Ops.gated` reads them."""
    if isinstance(weight, QuantizedWeight):
        half = len(weight.scales) // 2
        return QuantizedWeight(np.roll(weight.values, half, axis=0), np.roll(weight.scales, half))
    return np.roll(weight, len(weight) // 2, axis=0)


def find_model_type(flag: str, hf: Mapping[str, Any]) -> str:
    """The key in MODELS that `model_type_of` finds; ConfigError lists what there is, or names what to take instead."""
    name = model_type_of(hf, flag)
    if name in MODELS:
        return name
    known = f"is not one of {', '.join(MODELS)}; it needs its authors' code"
    why = f"is not served: {_INSTEAD[name]}" if name in _INSTEAD else known
    if flag != "auto":
        raise ConfigError(f"model_type is {name!r}, which {why}", param="model_type")
    says = "says model_type" if hf.get("model_type") else "has no model_type, and its architecture is"
    says = "has the architecture" if name in OWN_CLASSES.values() else says
    raise CheckpointError(f"config.json {says} {name!r}, which {why}")


def model_class(model_type: str) -> type[Model]:
    """The class of a key in MODELS."""
    module, name = MODELS[model_type]
    found: type[Model] = getattr(import_module(module), name)
    return found


def load_model(model_type: str, hf: Mapping[str, Any], source: TensorSource, ops: Ops) -> Model:
    """The model of a key in MODELS, as `Model.load` says, with the adapters that its source has."""
    model = model_class(model_type).load(hf, source, ops)
    if isinstance(source, AdapterFolders):
        if not model.takes_adapters:
            taking = ", ".join(name for name in MODELS if model_class(name).takes_adapters)
            raise ConfigError(
                f"lora_modules: of a {model_type} a request cannot choose adapters; serve their folders as models of "
                f"their own. It can of {taking}",
                param="lora_modules",
            )
        source.check_read({*model.tables.values(), *chain.from_iterable(model.matrices.values())})
        adapt(model, source, source.names, ops)
    return model
