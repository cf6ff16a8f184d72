"""sentence-transformers as a reference: SentenceTransformer, MultiVectorEncoder, SparseEncoder and CrossEncoder."""

from importlib import import_module
from typing import Any

import numpy as np

from rtp_llm.core import TaskType
from rtp_llm.modules import TOKEN_WEIGHTS
from rtp_llm.verify.huggingface import add_ends, load_tokenizer, separate_once
from rtp_llm.verify.outcome import Answer, Sample
from rtp_llm.verify.references import Original


class DenseReference:
    """`encode`, with the checkpoint's own prompts and limit."""

    def __init__(self, original: Original) -> None:
        self._model = _sentence_transformer(original)
        self._is_routed = original.model_config.router is not None
        self._model.float().eval()
        if not original.model_config.is_static:
            add_ends(self._model.tokenizer, original)
        if original.config.max_seq_len:
            self._model.max_seq_length = original.config.max_seq_len
        if original.model_config.skips_prompt:
            # Known there by a name on the hub, which a folder has not.
            self._model.set_pooling_include_prompt(False)
        self._ids = InputIds(self._model)

    def answer(self, sample: Sample) -> Answer:
        """The vector of one text."""
        options = _asked(sample, self._model, self._is_routed)
        (vector,) = self._model.encode([sample.input], show_progress_bar=False, **options)
        return Answer({TaskType.DENSE: {"dense": np.asarray(vector, np.float32)}}, self._ids.last)


class MultiVectorReference:
    """`encode_query` under the prompt of that name, `encode_document` elsewhere."""

    def __init__(self, original: Original) -> None:
        # By name, since the library has it from 6.0 on.
        library: Any = import_module("sentence_transformers")
        self._model = library.MultiVectorEncoder(str(original.folder), **_options(original))
        self._model.float().eval()
        if original.config.max_seq_len:
            self._model[0].document_length = original.config.max_seq_len
        self._ids = InputIds(self._model)

    def answer(self, sample: Sample) -> Answer:
        """The vectors of one text."""
        is_query = sample.prompt_name == "query"
        encode = self._model.encode_query if is_query else self._model.encode_document
        (vectors,) = encode([sample.input], convert_to_numpy=True, show_progress_bar=False)
        return Answer({TaskType.COLBERT: {"colbert": np.asarray(vectors, np.float32)}}, self._ids.last)


class SpladeReference:
    """`encode` of a masked language model, or of a Router."""

    def __init__(self, original: Original) -> None:
        library: Any = import_module("sentence_transformers")
        self._is_routed = original.model_config.router is not None
        self._model = library.SparseEncoder(str(original.folder), **_options(original))
        self._model.float().eval()
        self._ids = InputIds(self._model)

    def answer(self, sample: Sample) -> Answer:
        """The weights of one text."""
        options = _asked(sample, self._model, self._is_routed)
        rows = self._model.encode([sample.input], convert_to_sparse_tensor=False, show_progress_bar=False, **options)
        weights = np.asarray(rows[0], np.float32)
        found = np.flatnonzero(weights)
        sparse = dict(zip(found.tolist(), weights[found].tolist(), strict=True))
        return Answer({TaskType.SPARSE: {"sparse": sparse}}, self._ids.last)


class CrossEncoderReference:
    """`predict`, once as it is and once without activation."""

    def __init__(self, original: Original) -> None:
        from sentence_transformers import CrossEncoder

        limit = original.config.max_seq_len
        self._model: Any = CrossEncoder(str(original.folder), **_options(original), max_length=limit or None)
        self._model.float().eval()
        separate_once(self._model.tokenizer)
        self._ids = InputIds(self._model)

    def answer(self, sample: Sample) -> Answer:
        """The score of one pair."""
        from torch.nn import Identity

        score = self._model.predict([sample.input], show_progress_bar=False)
        logit = self._model.predict([sample.input], show_progress_bar=False, activation_fn=Identity())
        values = {"score": np.asarray(score, np.float32), "logit": np.asarray(logit, np.float32)}
        return Answer({TaskType.RERANK: values}, self._ids.last)


class ChatReference(CrossEncoderReference):
    """A CrossEncoder that puts pairs through the checkpoint's chat template; ValueError where that takes no pairs."""

    def __init__(self, original: Original) -> None:
        _check_takes_pairs(load_tokenizer(original))
        super().__init__(original)
        if "message" not in getattr(self._model[0], "modality_config", {}):
            raise ValueError("this sentence-transformers reads no chat template; 5.4 and later do")


class InputIds:
    """The ids that a module's transformer has read last, whatever tokenised them."""

    def __init__(self, module: Any) -> None:
        from torch.nn import EmbeddingBag
        from transformers import PreTrainedModel

        self.last: list[int] = []
        table: Any = next(part for part in module.modules() if isinstance(part, PreTrainedModel | EmbeddingBag))
        # The table of embeddings, since not every version of the library calls the transformer as a module.
        table = table if isinstance(table, EmbeddingBag) else table.get_input_embeddings()
        table.register_forward_pre_hook(self._keep)
        for part in module.modules():
            if type(part).__name__ == TOKEN_WEIGHTS:
                part.register_forward_pre_hook(self._keep_words)

    def _keep(self, module: Any, arguments: tuple[Any, ...]) -> None:
        # No text at all is the id after a table's last to us.
        self.last = arguments[0].reshape(-1).tolist() or [module.num_embeddings]

    def _keep_words(self, module: Any, arguments: tuple[Any, ...]) -> None:
        self.last = arguments[0]["input_ids"].reshape(-1).tolist()


def _asked(sample: Sample, model: Any, is_routed: bool) -> dict[str, Any]:
    """What `encode` is told of a sample: its prompt, and a Router what it is for, as `encode_query` tells it.

    The code of a checkpoint with adapters calls these tasks too.
    """
    name = sample.prompt_name
    if is_routed:
        return {"prompt_name": name if name in model.prompts else None, "task": name}
    return {"prompt_name": name} | ({} if sample.adapter is None else {"task": sample.adapter})


def _check_takes_pairs(tokenizer: Any) -> None:
    """Before any weight is loaded."""
    marks = ("first mark", "second mark")
    for contents in (marks, [[{"type": "text", "text": mark}] for mark in marks]):
        chat = [{"role": role, "content": text} for role, text in zip(("query", "document"), contents, strict=True)]
        try:
            text = str(tokenizer.apply_chat_template(chat, tokenize=False))
        except Exception:  # the border: a template may fail in any way
            continue
        if all(mark in text for mark in marks):
            return
    raise ValueError("its chat template takes no query and document")


def _options(original: Original) -> dict[str, Any]:
    import torch

    return {
        "device": "cpu",
        "local_files_only": True,
        "trust_remote_code": original.trust_remote_code,
        "model_kwargs": {"dtype": torch.float32},
    }


def _sentence_transformer(original: Original) -> Any:
    from sentence_transformers import SentenceTransformer

    if original.model_config.modules is not None:
        return SentenceTransformer(str(original.folder), **_options(original))
    # By name, since the library's newer versions know this module at run time only.
    parts: Any = import_module("sentence_transformers.models")
    options = {"local_files_only": True, "trust_remote_code": original.trust_remote_code}
    transformer = parts.Transformer(
        str(original.folder),
        model_args={**_options(original)["model_kwargs"], **options},
        config_args=options,
        tokenizer_args=options,
    )
    # From 5.4 on, the library takes a tokenizer with a chat template for a sign that chats are to be embedded.
    getattr(transformer, "modality_config", {}).pop("message", None)
    asked = original.config.pooling
    mode = original.model_config.default_pooling if asked == "auto" else asked
    pooling = parts.Pooling(transformer.get_word_embedding_dimension(), mode)
    cut = original.model_config.truncate_dim
    return SentenceTransformer(modules=[transformer, pooling], device="cpu", truncate_dim=cut)
