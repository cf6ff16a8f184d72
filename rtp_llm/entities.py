"""Entities: the characters of a text that a label stands for, from the scores of its tokens.

Equals transformers' TokenClassificationPipeline under each `aggregation_strategy`:

none     each token that has a label of its own
simple   tokens that follow each other and have the same label, whose B- and I- tell where the next entity begins
first    as simple, of words: a word has the label of its first token;
average  that of the largest mean of its tokens' scores;
max      or that of the token whose best score is the largest
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

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


class Labels:
    """A token classifier's labels: `names`, and `groups`, which are those of the entities that they are parts of."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.groups = tuple(name.split("-", 1)[-1] for name in names)
        # What labels that go together have in common; one without B- or I- goes on.
        tags = [name[len(_INSIDE) :] if name.startswith((_BEGIN, _INSIDE)) else name for name in names]
        self._tags = np.array([tags.index(tag) for tag in tags], np.intp)
        self._begins = np.array([name.startswith(_BEGIN) for name in names], bool)

    def runs(self, labels: NDArray[np.intp]) -> Iterable[tuple[int, int]]:
        """Labels by their numbers [n] -> first:stop of those that follow each other with one tag until one begins."""
        tags = self._tags[labels]
        breaks = np.flatnonzero((tags[1:] != tags[:-1]) | self._begins[labels[1:]]) + 1
        return pairwise([0, *breaks.tolist(), len(labels)]) if len(labels) else ()


class _Units(NamedTuple):
    """Tokens, or words: unit i is the tokens edges[i]:edges[i + 1] of the text, and has this label and score."""

    labels: NDArray[np.intp]
    scores: list[float]
    edges: list[int]

    @classmethod
    def of(cls, scores: FloatArray, edges: list[int]) -> "_Units":
        """By the units' scores [units, labels]."""
        labels = scores.argmax(axis=1)
        return cls(labels, scores[np.arange(len(scores)), labels].tolist(), edges)


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

    def joined_words(self, edges: Sequence[int]) -> str:
        """The text of words, each joined from its tokens."""
        return self._words.joined([self.joined(first, stop) for first, stop in pairwise(edges)])

    def word_edges(self) -> list[int]:
        """Where words begin, and where the last one ends."""
        return [0, *(i for i in range(1, len(self.ids)) if not self.is_subword(i)), len(self.ids)]


def find_entities(
    text: str, ids: Int32Array, spans: Int32Array, scores: FloatArray, *, labels: Labels, words: Words, params: Params
) -> list[Entity]:
    """A text and its tokens: ids [T], spans [T, 2] as `Item.spans`, scores [T, labels] -> its entities, in order."""
    strategy, ignored = params.aggregation_strategy, {*params.ignore_labels}
    assert strategy is not None
    tokens = _Tokens(text, ids, spans, scores, words)
    if not tokens.ids:
        return []
    is_of_words = strategy not in ("none", "simple")
    edges = tokens.word_edges() if is_of_words else [*range(len(tokens.ids) + 1)]
    units = _Units.of(_of_words(tokens.scores, edges, strategy) if is_of_words else tokens.scores, edges)
    if strategy == "none":
        named = [labels.names[label] for label in units.labels.tolist()]
        return [_of_token(tokens, units, place, name) for place, name in enumerate(named) if name not in ignored]
    runs = [(first, stop, labels.groups[units.labels[first]]) for first, stop in labels.runs(units.labels)]
    return [
        _of_run(tokens, units, first, stop, group, is_of_words=is_of_words)
        for first, stop, group in runs
        if group not in ignored
    ]


def without_overlaps(entities: Iterable[Entity]) -> list[Entity]:
    """Those of windows of one text, put together: of some that overlap the longest, or the first with the best score.

    Source: transformers, TokenClassificationPipeline.aggregate_overlapping_entities.
    """
    kept: list[Entity] = []
    for entity in sorted(entities, key=lambda entity: entity.start):
        if not kept or not kept[-1].start <= entity.start < kept[-1].end:
            kept.append(entity)
        elif _rank(entity) > _rank(kept[-1]):
            kept[-1] = entity
    return kept


def _rank(entity: Entity) -> tuple[int, float]:
    return entity.end - entity.start, entity.score


def _of_words(scores: FloatArray, edges: list[int], strategy: AggregationStrategy) -> FloatArray:
    """Scores of tokens [T, labels] -> of words [words, labels]."""
    first, lengths = np.array(edges[:-1], np.intp), np.diff(edges)
    if strategy == "first":
        return scores[first]
    if strategy == "average":
        return np.asarray(np.add.reduceat(scores, first, axis=0) / lengths[:, None], np.float32)
    best = scores.max(axis=1)
    places = np.flatnonzero(best == np.repeat(np.maximum.reduceat(best, first), lengths))
    # Of a word's tokens that are as good, the first.
    return scores[places[np.searchsorted(places, first)]]


def _of_token(tokens: _Tokens, units: _Units, place: int, name: str) -> Entity:
    start, end = tokens.spans[place]
    return Entity(name, units.scores[place], tokens.word(place), start, end, tokens.places[place])


def _of_run(tokens: _Tokens, units: _Units, first: int, stop: int, group: str, *, is_of_words: bool) -> Entity:
    edges = units.edges[first : stop + 1]
    # NOTE: as in transformers, words are joined that are joined already: not the same for every decoder.
    word = tokens.joined_words(edges) if is_of_words else tokens.joined(edges[0], edges[-1])
    score = float(np.mean(np.array(units.scores[first:stop], np.float32)))
    return Entity(group, score, word, tokens.spans[edges[0]][0], tokens.spans[edges[-1] - 1][1])
