"""How near a quantised model is to itself in fp32: the cosines between their rows of built-in texts."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rtp_llm.config import EngineConfig
from rtp_llm.core import NO_ADAPTER, FloatArray, Item, Params, Reads, pack
from rtp_llm.engine.tokenizer import Tokenizer
from rtp_llm.model_config import ModelConfig
from rtp_llm.models import Model
from rtp_llm.ops import Ops, PoolMode
from rtp_llm.runtime import Runtime, load_runtime

logger = logging.getLogger(__name__)

_BATCH = 8
_MAX_TOKENS = 256
WAYS_OUT = {
    "int8": "`rtp-llm quantize` keeps in fp32 the layers that need it",
    "int8_weights": "--weight_dtype bf16 is nearer",
    "int4_weights": "--quantization int8_weights is nearer",
}
_STEP = 3  # of the texts, those that are compared whenever a model is loaded
# What stands for a sequence, by the hidden states that the checkpoint's tasks read.
_MODES: dict[Reads, PoolMode] = {"all": "mean", "first": "cls", "last": "lasttoken"}

_SENTENCES = (
    "The night train to the coast leaves at 22:40 from platform seven.",
    "Water boils at a lower temperature on a mountain, because the air above it weighs less.",
    "Please find the signed contract attached; the deposit of €1,250 is due within ten days.",
    "She had read the letter twice before she understood that it was not meant for her.",
    "A mutex protects the queue, and each worker waits on a condition variable until there is work.",
    "def mean(values):\n    return sum(values) / len(values)",
    "Der Zug hatte zwanzig Minuten Verspätung, und niemand wusste, warum.",
    "Le marché du village a lieu chaque jeudi matin, sauf en hiver.",
    "El volcán entró en erupción en 1943 y cubrió dos pueblos de ceniza.",
    "这家餐馆的面条很好吃,但是周末要排队一个小时。",
    "図書館は月曜日に閉まっていますが、返却箱は使えます。",
    "Музей открыт ежедневно, кроме понедельника, с десяти до шести.",
    "The patient was given 40 mg twice a day and reported no side effects after a week.",
    "Interest rates rose by a quarter of a point, which the market had expected.",
    "In the second half the visitors pressed higher and were rewarded with two late goals.",
    "Fold in the egg whites gently, or the batter will lose its air.",
    "The statute of limitations begins on the day on which the damage was discovered.",
    "Error 503: the upstream server did not answer within 30 s (request id 7f3a-99).",
    "Migrating cranes rest on the same sandbanks every spring, whatever the weather.",
    "To change the battery, loosen the two screws on the back and slide the cover to the left.",
)  # fmt: skip
_WORDS = ("invoice", "how to prune apple trees", "capital of Mongolia", "cheap flights in March?", "SELECT * FROM t")


def texts() -> list[str]:
    """Queries, sentences, and passages of up to twelve sentences."""
    passages = []
    for number, size in enumerate((3, 4, 5, 6, 8, 12) * 2):
        start = 3 * number
        passages.append(" ".join(_SENTENCES[(start + i) % len(_SENTENCES)] for i in range(size)))
    return [*_WORDS, *_SENTENCES, *passages]


@dataclass(frozen=True, slots=True)
class Likeness:
    """Cosines between the rows of two models: the least, and the mean."""

    least: float
    mean: float

    def reaches(self, bars: "Likeness") -> bool:
        """Whether neither is below the bars'."""
        return self.least >= bars.least and self.mean >= bars.mean

    def __str__(self) -> str:
        return f"least {self.least:.5f}, mean {self.mean:.5f}"


BARS = Likeness(0.995, 0.998)


def items_of(tokenizer: Tokenizer, lines: Iterable[str]) -> list[Item]:
    """The texts as the model reads them, of at most 256 tokens."""
    items = tokenizer.encode(list(lines), Params())
    return [replace(item, input_ids=item.input_ids[:_MAX_TOKENS], token_type_ids=None) for item in items]


def pool_mode(tasks: Iterable[Any]) -> PoolMode:
    """How the tasks read a sequence; the mean of its tokens where they differ."""
    reads: set[Reads] = {task.reads for task in tasks}
    return _MODES[reads.pop()] if len(reads) == 1 else "mean"


def rows(model: Model, ops: Ops, items: Sequence[Item], mode: PoolMode) -> FloatArray:
    """[items, hidden_size], normalised."""
    found = []
    for start in range(0, len(items), _BATCH):
        part = [
            replace(item, adapter=_in_turns(model, place)) for place, item in enumerate(items[start : start + _BATCH])
        ]
        batch = ops.upload(model.prepare(pack(part)))
        pooled = ops.pool(model(ops, batch), batch, mode)
        found.append(ops.to_numpy(ops.l2_normalize(pooled)))
    return np.concatenate(found)


def _in_turns(model: Model, place: int) -> int:
    """An adapter for the text at this place, of a model that has such."""
    return place % len(model.adapters) if model.adapters else NO_ADAPTER


def likeness(left: FloatArray, right: FloatArray) -> Likeness:
    """Of normalised rows."""
    cosines = (left.astype(np.float64) * right).sum(axis=1)
    return Likeness(float(cosines.min()), float(cosines.mean()))


def report_likeness(config: EngineConfig, model_config: ModelConfig, runtime: Runtime, tokenizer: Tokenizer) -> None:
    """Log how near the quantised model is to fp32, on some of the texts; a warning where it is below the bars."""
    items, mode = items_of(tokenizer, texts()[::_STEP]), pool_mode(runtime.tasks.values())
    ops = runtime.ops.fork()  # a stream of its own: another model may be computing on the runtime's
    ops.num_threads = runtime.num_cores
    quantized = rows(runtime.model, ops, items, mode)
    exact = load_runtime(replace(config, quantization="none", act_type="fp32"), model_config)
    exact.ops.num_threads = exact.num_cores
    found = likeness(quantized, rows(exact.model, exact.ops, items, mode))
    if found.reaches(BARS):
        logger.info("%s: cosine to fp32 over %d texts: %s", config.quantization, len(items), found)
    else:
        logger.warning(
            "%s: cosine to fp32 over %d texts: %s, where %s are wanted; %s",
            config.quantization, len(items), found, BARS, WAYS_OUT[config.quantization],
        )  # fmt: skip
