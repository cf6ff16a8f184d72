"""FlagEmbedding's FlagLLMReranker by its formulas on transformers: one pair at a time, in fp32."""

from typing import Any

import numpy as np

from rtp_llm.core import TaskType
from rtp_llm.verify.huggingface import load_model, load_tokenizer
from rtp_llm.verify.outcome import Answer, Sample
from rtp_llm.verify.references import Original

_PROMPT = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'."
)


class FlagLLMReference:
    """logit: that of Yes at the last token; score: its sigmoid."""

    def __init__(self, original: Original) -> None:
        self._model = load_model(original, "AutoModelForCausalLM")
        self._tokenizer = load_tokenizer(original)
        self._line, self._prompt = self._ids("\n"), self._ids(_PROMPT)
        self._yes = self._ids("Yes")[0]
        self._max_length = original.max_seq_len - 2 * (len(self._line) + len(self._prompt))

    def answer(self, sample: Sample) -> Answer:
        """The score of one pair."""
        import torch

        assert isinstance(sample.input, tuple)
        ids = self.encode(*sample.input)
        with torch.inference_mode():
            logit = self._model(input_ids=torch.tensor([ids]), logits_to_keep=1).logits[0, -1, self._yes]
        values = {"score": np.array([torch.sigmoid(logit)], np.float32), "logit": np.array([logit], np.float32)}
        return Answer({TaskType.RERANK: values}, ids)

    def encode(self, query: str, passage: str) -> list[int]:
        """As its DatasetForReranker joins the parts: the passage alone is cut to what is left."""
        first = self._ids(f"A: {query}")[: self._max_length * 3 // 4]
        second = self._line + self._ids(f"B: {passage}")[: self._max_length]
        bos, pad = self._tokenizer.bos_token_id, self._tokenizer.pad_token_id
        if bos is not None and bos != pad:
            first = [bos, *first]
        room = self._max_length + len(self._line) + len(self._prompt) - len(first)
        return [*first, *second[:room], *self._line, *self._prompt]

    def _ids(self, text: str) -> list[int]:
        ids: Any = self._tokenizer.encode(text, add_special_tokens=False)
        return list(ids)
