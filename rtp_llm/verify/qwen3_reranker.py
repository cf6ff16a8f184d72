"""Qwen3-Reranker by its model card's code on transformers, for the original and for both kinds of conversion."""

from typing import Any

import numpy as np

from rtp_llm.checkpoint import read_json
from rtp_llm.core import TaskType
from rtp_llm.verify.huggingface import load_model, load_tokenizer
from rtp_llm.verify.outcome import Answer, Sample
from rtp_llm.verify.references import Original

_PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"


class Qwen3Reference:
    """logit: that of yes less that of no, or the converted head's; score: P(yes), or as LogitScore's file says."""

    def __init__(self, original: Original) -> None:
        config = original.model_config
        head = "AutoModelForCausalLM" if config.is_language_model else "AutoModelForSequenceClassification"
        self._model = load_model(original, head)
        self._tokenizer = load_tokenizer(original)
        self._activation = config.score_activation
        self._answers = self._answer_ids(original) if config.is_language_model else None
        self._before: list[int] = self._tokenizer.encode(_PREFIX, add_special_tokens=False)
        self._after: list[int] = self._tokenizer.encode(_SUFFIX, add_special_tokens=False)
        self._room = original.max_seq_len - len(self._before) - len(self._after)

    def answer(self, sample: Sample) -> Answer:
        """The score of one pair."""
        import torch

        assert isinstance(sample.input, tuple)
        query, document = sample.input
        body = f"<Instruct>: {_INSTRUCTION}\n<Query>: {query}\n<Document>: {document}"
        cut = self._tokenizer([body], truncation="longest_first", max_length=self._room)["input_ids"][0]
        ids = [*self._before, *cut, *self._after]
        with torch.inference_mode():
            logit = self._logit(torch.tensor([ids]))
            score = self._score(logit)
        values = {"score": np.array([score], np.float32), "logit": np.array([logit], np.float32)}
        return Answer({TaskType.RERANK: values}, ids)

    def _logit(self, ids: Any) -> Any:
        if self._answers is None:
            return self._model(input_ids=ids).logits[0, 0]
        yes, no = self._answers
        last = self._model(input_ids=ids, logits_to_keep=1).logits[0, -1]
        return last[yes] if no is None else last[yes] - last[no]

    def _score(self, logit: Any) -> Any:
        import torch

        if self._activation is None:
            return torch.sigmoid(logit)
        return getattr(torch.nn, self._activation.rpartition(".")[2])()(logit)

    def _answer_ids(self, original: Original) -> tuple[int, int | None]:
        module = original.model_config.logit_score
        if module is None:
            return self._tokenizer.convert_tokens_to_ids("yes"), self._tokenizer.convert_tokens_to_ids("no")
        settings = read_json(module.folder, "config.json")
        return settings["true_token_id"], settings.get("false_token_id")
