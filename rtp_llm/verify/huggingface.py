"""transformers as a reference: classifiers of texts and of tokens, hidden states, and DPR's vectors."""

from typing import Any

import numpy as np

from rtp_llm.checkpoint import read_json
from rtp_llm.core import TaskType
from rtp_llm.verify.outcome import Answer, Sample, places
from rtp_llm.verify.references import Original


class TokensReference:
    """The last hidden state of each token, normalised, as RTP-LLM's ALL_EMBEDDING gives it."""

    def __init__(self, original: Original) -> None:
        self._model = load_model(original, "AutoModel")
        self._tokenizer = load_tokenizer(original)
        self._limit = original.max_seq_len

    def answer(self, sample: Sample) -> Answer:
        """The vectors of one text."""
        import torch

        encoded = encode(self._tokenizer, sample, self._limit)
        with torch.inference_mode():
            hidden = self._model(**encoded).last_hidden_state[0]
            vectors = torch.nn.functional.normalize(hidden, dim=-1).numpy()
        return Answer({TaskType.TOKENS: {"tokens": vectors}}, encoded["input_ids"][0].tolist())


class DprReference:
    """The vector of a DPR's encoder, which is its pooler_output."""

    def __init__(self, original: Original) -> None:
        self._model = load_model(original, original.model_config.architecture)
        self._tokenizer = load_tokenizer(original)
        self._limit = original.max_seq_len

    def answer(self, sample: Sample) -> Answer:
        """The vector of one text."""
        import torch

        encoded = encode(self._tokenizer, sample, self._limit)
        with torch.inference_mode():
            vector = self._model(**encoded).pooler_output[0].numpy()
        return Answer({TaskType.DENSE: {"dense": vector}}, encoded["input_ids"][0].tolist())


class ClassifyReference:
    """Logits, and the scores and label names of the text-classification pipeline."""

    def __init__(self, original: Original) -> None:
        import transformers

        self._model = load_model(original, "AutoModelForSequenceClassification")
        self._tokenizer = load_tokenizer(original)
        self._limit = original.max_seq_len
        pipeline: Any = transformers.TextClassificationPipeline
        self._pipeline = pipeline(model=self._model, tokenizer=self._tokenizer, device="cpu")

    def answer(self, sample: Sample) -> Answer:
        """The labels of one text or pair, in the order of their numbers."""
        import torch

        encoded = encode(self._tokenizer, sample, self._limit)
        with torch.inference_mode():
            output = self._model(**encoded)
        scored = self._pipeline.postprocess(output, top_k=None, _legacy=False)
        by_label = {entry["label"]: entry["score"] for entry in scored}
        names = [self._model.config.id2label[index] for index in range(output.logits.shape[-1])]
        values = {
            "scores": np.array([by_label[name] for name in names], np.float32),
            "logits": output.logits[0].numpy(),
        }
        return Answer({TaskType.CLASSIFY: values}, encoded["input_ids"][0].tolist())


class TokenClassifyReference:
    """Logits of each token, and their softmax; where the token-classification pipeline finds entities."""

    def __init__(self, original: Original) -> None:
        import transformers

        self._model = load_model(original, "AutoModelForTokenClassification")
        self._tokenizer = load_tokenizer(original)
        self._limit = self._tokenizer.model_max_length = original.max_seq_len
        pipeline: Any = transformers.TokenClassificationPipeline
        self._pipeline = pipeline(
            model=self._model, tokenizer=self._tokenizer, device="cpu", aggregation_strategy="simple"
        )

    def answer(self, sample: Sample) -> Answer:
        """The tokens of one text."""
        import torch

        encoded = encode(self._tokenizer, sample, self._limit)
        with torch.inference_mode():
            logits = self._model(**encoded).logits[0]
        values = {
            "scores": logits.softmax(dim=-1).numpy(),
            "logits": logits.numpy(),
            "places": places((entity["start"], entity["end"]) for entity in self._pipeline(sample.input)),
        }
        return Answer({TaskType.TOKEN_CLASSIFY: values}, encoded["input_ids"][0].tolist())


def load_model(original: Original, auto_class: str) -> Any:
    """`auto_class` of transformers in fp32 on the CPU."""
    import torch
    import transformers

    model = getattr(transformers, auto_class).from_pretrained(
        str(original.transformer_folder),
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=original.trust_remote_code,
    )
    return model.eval()


def load_tokenizer(original: Original) -> Any:
    """The checkpoint's tokenizer by transformers."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(
        str(original.transformer_folder), local_files_only=True, trust_remote_code=original.trust_remote_code
    )
    add_ends(tokenizer, original)
    separate_once(tokenizer)
    return tokenizer


def add_ends(tokenizer: Any, original: Original) -> None:
    """Honour add_bos_token and add_eos_token of tokenizer_config.json, as gte-Qwen2's own tokenizer code does.

    transformers 5 does not read them where there is a tokenizer.json. transformers 4 read those of Llama's and Gemma's
    tokenizers even where it adds tokens itself: e5-mistral ends with EOS by them.
    """
    config = read_json(original.transformer_folder, "tokenizer_config.json", required=False)
    is_ended = tokenizer("")["input_ids"][-1:] == [tokenizer.eos_token_id]
    is_of_both = str(config.get("tokenizer_class")).removesuffix("Fast") in ("LlamaTokenizer", "GemmaTokenizer")
    if is_of_both and config.get("add_eos_token") is True and not is_ended:
        tokenizer.add_bos_token = config.get("add_bos_token") is not False
        tokenizer.add_eos_token = True
    elif tokenizer.num_special_tokens_to_add(pair=False) == 0:
        for name in ("add_bos_token", "add_eos_token"):
            if config.get(name) is True:
                setattr(tokenizer, name, True)


def separate_once(tokenizer: Any) -> None:
    """One separator between the texts of a pair, with which every DeBERTa was trained; transformers 5 writes two."""
    if type(tokenizer).__name__ != "DebertaTokenizer":
        return
    cls, sep = tokenizer.cls_token, tokenizer.sep_token
    template = type(tokenizer.backend_tokenizer.post_processor)
    tokenizer.backend_tokenizer.post_processor = template(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, tokenizer.cls_token_id), (sep, tokenizer.sep_token_id)],
    )


def encode(tokenizer: Any, sample: Sample, limit: int) -> Any:
    """A batch of one: given as an argument of its own, an empty second text would count as none."""
    return tokenizer([sample.input], truncation="longest_first", max_length=limit, return_tensors="pt")
