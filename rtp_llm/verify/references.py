"""The authors' code for each task: which library it is in, and how it is loaded."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from rtp_llm.checkpoint import ADAPTER_CONFIG, find
from rtp_llm.config import EngineConfig
from rtp_llm.core import TaskType
from rtp_llm.model_config import ModelConfig
from rtp_llm.tasks import is_splade
from rtp_llm.verify.outcome import Answer, Sample

# import name -> the name to install.
_DISTRIBUTIONS = {
    "torch": "torch", "transformers": "transformers", "sentence_transformers": "sentence-transformers",
    "FlagEmbedding": "FlagEmbedding", "peft": "peft",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """What a reference is loaded from.

    folder       the checkpoint as the flags change it
    max_seq_len  our limit; a library that has one of its own keeps that, unless the flag is given
    """

    folder: Path
    model_config: ModelConfig
    config: EngineConfig
    max_seq_len: int
    trust_remote_code: bool

    @property
    def transformer_folder(self) -> Path:
        """The part with config.json, weights and tokenizer."""
        return self.folder / self.model_config.transformer_folder.relative_to(self.model_config.folder)


class Reference(Protocol):
    """A loaded model of the authors' code, in fp32 on the CPU."""

    def answer(self, sample: Sample) -> Answer:
        """The tasks' values of one sample, alone in its batch; raises whatever the library raises."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Tasks that one reference answers: its class, the libraries that it needs, and what it is called.

    `otherwise` is what serves where this one is not installed or does not load.
    """

    tasks: tuple[TaskType, ...]
    module: str
    class_name: str
    libraries: tuple[str, ...]
    title: str
    otherwise: "Plan | None" = None

    @property
    def missing(self) -> str | None:
        """A library that is not installed, by the name to install; None: all are here."""
        return next((_DISTRIBUTIONS[name] for name in self.libraries if find_spec(name) is None), None)

    @property
    def to_install(self) -> str:
        """What pip is to be given where a library is missing: peft is of adapters alone, and not in the extra."""
        return "peft" if self.missing == "peft" else "'rtp-llm[verify]'"

    @property
    def description(self) -> str:
        """The title with the libraries' versions."""
        versions = [f"{_DISTRIBUTIONS[name]} {metadata.version(_DISTRIBUTIONS[name])}" for name in self.libraries]
        return f"{self.title} ({', '.join(versions)}; fp32)"

    def load(self, original: Original) -> Reference:
        """The reference; raises whatever the library raises."""
        factory: Callable[[Original], Any] = getattr(import_module(self.module), self.class_name)
        reference: Reference = factory(original)
        return reference


_HF = ("transformers", "torch")
_ST = ("sentence_transformers", "transformers", "torch")


def make_plans(model_config: ModelConfig, tasks: tuple[TaskType, ...]) -> list[Plan]:
    """A plan for each task that has authors' code; some for several.

    Of an adapter that code needs peft, without which it would silently compute with the base alone.
    """
    plans = _make_plans(model_config, tasks)
    has_adapter = find(model_config.transformer_folder, ADAPTER_CONFIG) is not None
    return [_with_peft(plan) for plan in plans] if has_adapter else plans


def _with_peft(plan: Plan) -> Plan:
    otherwise = None if plan.otherwise is None else _with_peft(plan.otherwise)
    return replace(plan, libraries=(*plan.libraries, "peft"), otherwise=otherwise)


def _make_plans(model_config: ModelConfig, tasks: tuple[TaskType, ...]) -> list[Plan]:
    plans = []
    if TaskType.COLBERT in tasks and model_config.late is not None:
        title = "sentence-transformers' MultiVectorEncoder"
        plans.append(Plan((TaskType.COLBERT,), "rtp_llm.verify.sbert", "MultiVectorReference", _ST, title))
        tasks = tuple(task for task in tasks if task not in (TaskType.COLBERT, TaskType.TOKENS))
    if TaskType.SPARSE in tasks and is_splade(model_config):
        title = "sentence-transformers' SparseEncoder"
        plans.append(Plan((TaskType.SPARSE,), "rtp_llm.verify.sbert", "SpladeReference", _ST, title))
        tasks = tuple(task for task in tasks if task is not TaskType.SPARSE)
    # Of Qwen3-VL without modules.json there are the scripts of its authors' repository alone.
    has_library = not model_config.is_qwen3_vl or model_config.modules is not None
    lexical = tuple(task for task in tasks if task in (TaskType.SPARSE, TaskType.COLBERT))
    is_plain_m3 = model_config.is_bge_m3 and model_config.modules is None
    if TaskType.DENSE in tasks and model_config.model_type == "dpr" and model_config.modules is None:
        title = "transformers' encoder"
        plans.append(Plan((TaskType.DENSE,), "rtp_llm.verify.huggingface", "DprReference", _HF, title))
    elif TaskType.DENSE in tasks and not is_plain_m3 and has_library:
        title = "sentence-transformers' SentenceTransformer"
        plans.append(Plan((TaskType.DENSE,), "rtp_llm.verify.sbert", "DenseReference", _ST, title))
    m3_tasks = (TaskType.DENSE, *lexical) if TaskType.DENSE in tasks and is_plain_m3 else lexical
    if m3_tasks:
        plans.append(_m3_plan(m3_tasks))
    # Beside dense vectors, tokens are what these were made of.
    if TaskType.TOKENS in tasks and TaskType.DENSE not in tasks:
        title = "transformers' AutoModel, normalised"
        plans.append(Plan((TaskType.TOKENS,), "rtp_llm.verify.huggingface", "TokensReference", _HF, title))
    # FlagEmbedding's own code of a layerwise model is for transformers 4; a listwise one's comes with the checkpoint.
    has_reference = has_library and not (model_config.is_layerwise_reranker or model_config.is_listwise)
    if TaskType.RERANK in tasks and has_reference:
        plans.append(_rerank_plan(model_config))
    # transformers knows nothing of a chain of modules after its model.
    if TaskType.CLASSIFY in tasks and model_config.num_scores is None:
        title = "transformers' AutoModelForSequenceClassification and its pipeline"
        plans.append(Plan((TaskType.CLASSIFY,), "rtp_llm.verify.huggingface", "ClassifyReference", _HF, title))
    if TaskType.TOKEN_CLASSIFY in tasks:
        title = "transformers' AutoModelForTokenClassification"
        plans.append(
            Plan((TaskType.TOKEN_CLASSIFY,), "rtp_llm.verify.huggingface", "TokenClassifyReference", _HF, title)
        )
    return plans


def _m3_plan(tasks: tuple[TaskType, ...]) -> Plan:
    """FlagEmbedding where it is installed and works with the transformers beside it, else its formulas."""
    module, title = "rtp_llm.verify.bge_m3", "FlagEmbedding's formulas on transformers' AutoModel"
    formulas = Plan(tasks, module, "FormulaReference", _HF, title)
    if find_spec("FlagEmbedding") is None:
        return formulas
    return Plan(tasks, module, "FlagReference", ("FlagEmbedding", *_HF), "FlagEmbedding's BGEM3FlagModel", formulas)


def _rerank_plan(model_config: ModelConfig) -> Plan:
    tasks, title = (TaskType.RERANK,), "sentence-transformers' CrossEncoder"
    if not model_config.is_language_reranker:
        return Plan(tasks, "rtp_llm.verify.sbert", "CrossEncoderReference", _ST, title)
    if model_config.is_flag_reranker:
        title = "FlagEmbedding's FlagLLMReranker, by its formulas on transformers"
        return Plan(tasks, "rtp_llm.verify.flag_reranker", "FlagLLMReference", _HF, title)
    card_title = "Qwen3-Reranker's model card on transformers"
    card = Plan(tasks, "rtp_llm.verify.qwen3_reranker", "Qwen3Reference", _HF, card_title)
    otherwise = card if model_config.is_qwen3_reranker and not model_config.is_qwen3_vl else None
    return Plan(tasks, "rtp_llm.verify.sbert", "ChatReference", _ST, f"{title}, by the chat template", otherwise)
