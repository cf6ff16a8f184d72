"""The inputs that are compared: several languages, the empty text, emoji, code, and one over the limit."""

from collections.abc import Sequence
from dataclasses import replace

from rtp_llm.core import Input, ModelInfo, TaskType
from rtp_llm.errors import InvalidRequest
from rtp_llm.verify.outcome import Sample

TEXTS = (
    "The weather is lovely today.",
    "",
    "It's so sunny outside!",
    "今天天气很好,我们去公园散步吧。",
    "Où est la bibliothèque? “Naïve” café — 3,5 €",
    "Die Straßenbahn fährt um 7:45 Uhr ab.",
    "今日は天気がいいです。散歩に行きましょう。",
    "Погода сегодня прекрасная.",
    "🙂🚀 emoji 👩‍👩‍👧 and\ttabs\nand  spaces",
    'def add(a: int, b: int) -> int:\n    return a + b  # {"json": [1, 2.5e-3]}',
    "https://example.com/a/b?c=d&e=%20f supercalifragilisticexpialidocious",
)
QUERIES = ("how is the weather?", "how do I add two numbers in Python?", "今天天气怎么样?")
# Words of a text over the limit, for models that read more: beyond it only time would be spent.
_MOST_WORDS = 1100
_SENTENCE = "A long text is cut at the limit of the model that reads it. ".split()
# Samples under each of the checkpoint's prompts, and the most prompts that are tried.
_PROMPTED, _MOST_PROMPTS = TEXTS[:2] + TEXTS[3:4], 4
_ADAPTED = 3  # samples under each of the model's adapters


def long_text(limit: int) -> str:
    """More words than `limit` tokens, where that is affordable; a word is one token or more."""
    num_words = min(limit, _MOST_WORDS) + 40
    return " ".join((_SENTENCE * (num_words // len(_SENTENCE) + 1))[:num_words])


def texts(limit: int, prompts: Sequence[str]) -> list[Sample]:
    """The default texts, and some of them under prompts of these names."""
    plain = [Sample(text) for text in (*TEXTS, long_text(limit))]
    return plain + [Sample(text, name) for name in prompts[:_MOST_PROMPTS] for text in _PROMPTED]


def pairs(limit: int) -> list[Sample]:
    """Queries with documents: both default, one empty, one over the limit on either side."""
    found = [(QUERIES[place % len(QUERIES)], text) for place, text in enumerate(TEXTS)]
    return [Sample(pair) for pair in (*found, (QUERIES[0], long_text(limit)), (long_text(limit), TEXTS[0]))]


def default_samples(task: TaskType, limit: int, prompts: Sequence[str]) -> list[Sample]:
    """What is compared under a task when the caller brings no texts."""
    if task is TaskType.RERANK:
        return pairs(limit)
    if task is TaskType.CLASSIFY:
        return texts(limit, ()) + pairs(limit)[:3]
    return texts(limit, prompts)


def own_samples(task: TaskType, lines: Sequence[str]) -> list[Sample]:
    """A caller's lines; for rerankers and classifiers a tab makes a pair of one, which a reranker needs."""
    if task not in (TaskType.RERANK, TaskType.CLASSIFY):
        return [Sample(line) for line in lines]
    samples = []
    for number, line in enumerate(lines, 1):
        first, tab, second = line.partition("\t")
        if not tab and task is TaskType.RERANK:
            raise InvalidRequest(f"line {number} has no tab; a reranker's line is query and document, a tab between")
        value: Input = (first, second) if tab else line
        samples.append(Sample(value))
    return samples


def with_adapters(samples: Sequence[Sample], info: ModelInfo) -> list[Sample]:
    """Samples of a model with adapters: as they are where none is needed, and some of them under each."""
    usual = info.merged_adapter or (info.adapters[0] if info.needs_adapter else None)
    plain = [replace(sample, adapter=usual) for sample in samples]
    others = [name for name in info.adapters if name != usual]
    return plain + [replace(sample, adapter=name) for name in others for sample in samples[:_ADAPTED]]
