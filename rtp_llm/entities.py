"""Entities: the characters of a text that a label stands for, from the scores of its tokens.

Equals transformers' TokenClassificationPipeline under each `aggregation_strategy`:

none     each token that has a label of its own
simple   tokens that follow each other and have the same label, whose B- and I- tell where the next entity begins
first    as simple, of words: a word has the label of its first token;
average  that of the largest mean of its tokens' scores;
max      or that of the token whose best score is the largest
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from rtp_llm.core import AggregationStrategy, FloatArray, Int32Array, Params

_BEGIN, _INSIDE = "B-", "I-"


class Words(Protocol):
    """What is known of a vocabulary.

    marks_subwords  whether a token that continues a word is written so that it shows, as BERT's ##ing
    """

    marks_subwords: bool

    @property
    def special_ids(self) -> Mapping[str, int]: ...

    def piece(self, token_id: int) -> str:
        """The vocabulary's own word for an id."""

    def joined(self, pieces: list[str]) -> str:
        """The text of such words."""


@dataclass(frozen=True, slots=True)
class Entity:
    """The characters start:end of a text as it was sent; `word` is what the tokenizer makes of their tokens.

    index  of a single token, its place among those that the model read; None: a group of tokens
    """

    label: str
    score: float
    word: str
    start: int
    end: int
    index: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """As transformers' pipeline has it."""
        if self.index is None:
            kind: dict[str, Any] = {"entity_group": self.label, "score": self.score}
        else:
            kind = {"entity": self.label, "score": self.score, "index": self.index}
        return {**kind, "word": self.word, "start": self.start, "end": self.end}


class _Unit(NamedTuple):
    """A token, or the tokens of a word: first:stop of those that are of the text."""

    label: int
    score: float
    first: int
    stop: int


class _Tokens:
    """The tokens of a text, without special ones and those of a prompt."""

    def __init__(self, text: str, ids: Int32Array, spans: Int32Array, scores: FloatArray, words: Words) -> None:
        kept = np.flatnonzero(spans[:, 0] >= 0)
        self.places: list[int] = kept.tolist()
        self.ids: list[int] = ids[kept].tolist()
        self.spans: list[tuple[int, int]] = spans[kept].tolist()
        self.scores = scores[kept]
        self._text = text
        self._words = words
        self._unknown = words.special_ids.get("unk")

    def word(self, place: int) -> str:
        """The vocabulary's word, or what is in the text where it has none."""
        start, end = self.spans[place]
        return self._text[start:end] if self.ids[place] == self._unknown else self._words.piece(self.ids[place])

    def is_subword(self, place: int) -> bool:
        """Whether a token continues a word; where the vocabulary does not show it, none begins without a space."""
        (start, end), token_id = self.spans[place], self.ids[place]
        if token_id == self._unknown:
            return False
        if self._words.marks_subwords:
            return len(self._words.piece(token_id)) != end - start
        return start > 0 and " " not in self._text[start - 1 : start + 1]

    def joined(self, first: int, stop: int) -> str:
        """The text of some tokens."""
        return self._words.joined([self.word(place) for place in range(first, stop)])

    def joined_words(self, units: Sequence[_Unit]) -> str:
        """The text of words, each joined from its tokens."""
        return self._words.joined([self.joined(unit.first, unit.stop) for unit in units])


def find_entities(
    text: str,
    ids: Int32Array,
    spans: Int32Array,
    scores: FloatArray,
    *,
    labels: Sequence[str],
    words: Words,
    params: Params,
) -> list[Entity]:
    """A text and its tokens: ids [T], spans [T, 2] as `Item.spans`, scores [T, labels] -> its entities, in order."""
    strategy, ignored = params.aggregation_strategy, {*params.ignore_labels}
    assert strategy is not None
    tokens = _Tokens(text, ids, spans, scores, words)
    if strategy in ("none", "simple"):
        units = _token_units(tokens.scores)
    else:
        units = [_word_unit(tokens.scores, first, stop, strategy) for first, stop in _words_of(tokens)]
    if strategy == "none":
        return [_of_token(tokens, unit, labels) for unit in units if labels[unit.label] not in ignored]
    kinds = [_Kind.of(label) for label in labels]
    return [
        _of_group(tokens, group, kinds, is_of_words=strategy != "simple")
        for group in _groups(units, kinds)
        if kinds[group[0].label].group not in ignored
    ]


def _token_units(scores: FloatArray) -> list[_Unit]:
    labels = scores.argmax(axis=1)
    best = scores[np.arange(len(scores)), labels]
    pairs = zip(labels.tolist(), best.tolist(), strict=True)
    return [_Unit(label, score, place, place + 1) for place, (label, score) in enumerate(pairs)]


def _words_of(tokens: _Tokens) -> Iterator[tuple[int, int]]:
    """first:stop of each word."""
    first = 0
    for place in range(1, len(tokens.ids)):
        if not tokens.is_subword(place):
            yield first, place
            first = place
    if tokens.ids:
        yield first, len(tokens.ids)


def _word_unit(scores: FloatArray, first: int, stop: int, strategy: AggregationStrategy) -> _Unit:
    own = scores[first:stop]
    if strategy == "average":
        row = own.mean(axis=0)
    else:
        row = own[0] if strategy == "first" else own[own.max(axis=1).argmax()]
    label = int(row.argmax())
    return _Unit(label, float(row[label]), first, stop)


class _Kind(NamedTuple):
    """What a label says: `group`, the name of its entities; `tag`, what those that go together have in common."""

    group: str
    tag: str
    begins: bool

    @classmethod
    def of(cls, label: str) -> "_Kind":
        """By its B- or I-; a label without them goes on."""
        tag = label[len(_INSIDE) :] if label.startswith((_BEGIN, _INSIDE)) else label
        return cls(label.split("-", 1)[-1], tag, label.startswith(_BEGIN))


def _groups(units: Sequence[_Unit], kinds: Sequence[_Kind]) -> Iterator[list[_Unit]]:
    """Units that follow each other with the same tag, until the next one begins."""
    group: list[_Unit] = []
    for unit in units:
        kind = kinds[unit.label]
        if group and (kind.begins or kind.tag != kinds[group[-1].label].tag):
            yield group
            group = []
        group.append(unit)
    if group:
        yield group


def _of_token(tokens: _Tokens, unit: _Unit, labels: Sequence[str]) -> Entity:
    (start, end), place = tokens.spans[unit.first], unit.first
    return Entity(labels[unit.label], unit.score, tokens.word(place), start, end, tokens.places[place])


def _of_group(tokens: _Tokens, group: list[_Unit], kinds: Sequence[_Kind], *, is_of_words: bool) -> Entity:
    first, stop = group[0].first, group[-1].stop
    # NOTE: as in transformers, words are joined that are joined already: not the same for every decoder.
    word = tokens.joined_words(group) if is_of_words else tokens.joined(first, stop)
    score = float(np.mean(np.array([unit.score for unit in group], np.float32)))
    return Entity(kinds[group[0].label].group, score, word, tokens.spans[first][0], tokens.spans[stop - 1][1])
