"""Where a long text may be cut before it is tokenised, so that the tokens of a part are those of the whole.

A model that reads 512 tokens needs some kilobytes of a text of megabytes. A tokenizer works in words, and a part has
the whole's where it ends between two words, whatever stands around. Such places, by how words are found:

BERT                      before white space, ASCII punctuation and, where each is a word, CJK ideographs
white space               before white space that follows something else
sentencepiece's spaces    before a space after a letter, a digit or ASCII punctuation: others may become spaces too
byte-level (GPT-2, Qwen)  before a space that follows something else; after a letter or digit and before ASCII or the
                          commonest full-width characters that are neither. No alternative of their regular expressions
                          goes over such a place or looks past it, and NFC joins nothing there: the letters are of
                          alphabets whose NFC is theirs, since that of others may end in a mark

Letters without end (Thai, a file in base64) have no such place and are tokenised whole, at up to a second a megabyte,
if they are not too many: the tokenizer bounds what it takes at a time.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

# Each character becomes something by itself and the combining marks behind it.
_NORMALIZERS = frozenset(
    ("BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Precompiled", "StripAccents"),
)
# Regular expressions of replaced white space, which takes in all of it that stands together.
_BLANKS = frozenset((r"\s{2,}|[\n\r\t]", " {2,}"))
_SPACE = " \\t\\n\\r"
_PUNCTUATION = "!-/:-@\\[-`{-~"
# Latin, Cyrillic, kana, ideographs, Hangul.
_LETTERS = (
    "0-9A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017f\u0400-\u0481\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3"
)
_BERT = re.compile(f"[{_SPACE}{_PUNCTUATION}]")
_BERT_CJK = re.compile(f"[{_SPACE}{_PUNCTUATION}\u4e00-\u9fff]")
_WHITE_SPACE = re.compile(f"(?<=\\S)[{_SPACE}]")
_METASPACE = re.compile(f"(?<=[{_LETTERS}{_PUNCTUATION}]) ")
_BYTE_LEVEL = re.compile(
    f"(?<=\\S) |(?<=[{_LETTERS}])[{_SPACE}{_PUNCTUATION}\u3001\u3002\uff01\uff0c\uff0e\uff1a\uff1b\uff1f]"
)
# The regular expressions of Qwen2 and of Llama 3, which differ in how many digits make a word.
_BEFORE, _AFTER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_WORDS = frozenset(_BEFORE + digits + _AFTER for digits in (r"\p{N}", r"\p{N}{1,3}"))
_NEAR = 512  # characters that are searched for a place first


class Cuts:
    """The places of one tokenizer.

    added  its tokens that are found in the text before words are
    tails  whether what begins at a place is tokenised as it is there, and not as the start of a text
    """

    def __init__(self, places: re.Pattern[str], added: tuple[str, ...], *, tails: bool) -> None:
        self._places = places
        self.tails = tails
        self._added = tuple(token for token in added if places.search(token, 1))
        self._longest = max(map(len, self._added), default=0)

    def head(self, text: str, num_characters: int) -> str:
        """The longest part from the start, of at most `num_characters`, or else the shortest that can be cut off.

        The text itself where it cannot be cut.
        """
        for start in (max(num_characters - _NEAR, 0), 0):
            for place in reversed([match.start() for match in self._places.finditer(text, start, num_characters + 1)]):
                if place > 0 and not self._is_inside(text, place):
                    return text[:place]
        later = (match.start() for match in self._places.finditer(text, num_characters + 1))
        return text[: next((place for place in later if not self._is_inside(text, place)), None)]

    def tail(self, text: str, num_characters: int) -> str:
        """The same from the end."""
        if not self.tails:
            return text
        for match in self._places.finditer(text, max(len(text) - num_characters, 1)):
            if not self._is_inside(text, match.start()):
                return text[match.start() :]
        return text

    def _is_inside(self, text: str, place: int) -> bool:
        """Whether an added token, as `<|im_start|>`, goes over the place."""
        around = text[max(place - self._longest + 1, 0) : place + self._longest - 1] if self._longest else ""
        return any(token in around for token in self._added)


def find_cuts(tokenizer: Any) -> Cuts | None:
    """The places of a `tokenizers.Tokenizer`; None where none are known to be safe."""
    added = tokenizer.get_added_tokens_decoder().values()
    normalizer, words = steps(tokenizer.normalizer), steps(tokenizer.pre_tokenizer)
    places = _places(normalizer, words)
    if places is None or any(token.single_word for token in added):
        return None
    if normalizer and any(token.normalized and places.search(token.content, 1) for token in added):
        return None
    tails = not any(step.get("add_prefix_space") or step.get("prepend_scheme") == "first" for step in words)
    return Cuts(places, tuple(token.content for token in added), tails=tails)


def _places(normalizer: list[Mapping[str, Any]], words: list[Mapping[str, Any]]) -> re.Pattern[str] | None:
    if not words or not all(map(_is_known, normalizer)):
        return None
    kinds, first = {step["type"] for step in normalizer}, words[0]
    if first["type"] == "BertPreTokenizer":
        by_ideograph = any(step.get("handle_chinese_chars") for step in normalizer)
        return _BERT_CJK if by_ideograph else _BERT
    if first["type"] in ("Whitespace", "WhitespaceSplit"):
        return _WHITE_SPACE
    if all(
        step["type"] == "Punctuation" or (step["type"] == "Metaspace" and step.get("split", True)) for step in words
    ):
        return _METASPACE
    return _BYTE_LEVEL if kinds <= {"NFC"} and _is_byte_level(words) else None


def _is_known(step: Mapping[str, Any]) -> bool:
    """Whether what a step of the normalizer makes of the text before a place is the same whatever stands behind."""
    if step["type"] == "Replace":
        pattern, content = step["pattern"], step["content"]
        text = pattern.get("String", " ") + content
        return pattern.get("Regex") in _BLANKS or not any(map(str.isspace, text))
    return step["type"] in _NORMALIZERS or (step["type"] == "Strip" and not step["strip_left"])


def _is_byte_level(words: list[Mapping[str, Any]]) -> bool:
    """GPT-2's own regular expression, or one of `_WORDS` before it."""
    first, last = words[0], words[-1]
    if last["type"] != "ByteLevel" or len(words) > 2:
        return False
    if len(words) == 1:
        return bool(last.get("use_regex", True))
    is_split = first["type"] == "Split" and first.get("behavior") == "Isolated" and not first.get("invert")
    return bool(is_split and not last.get("use_regex", True) and first["pattern"].get("Regex") in _WORDS)


def steps(part: Any) -> list[Mapping[str, Any]]:
    """A normalizer's or pre-tokenizer's serialised steps, in order."""
    state = {} if part is None else json.loads(part.__getstate__())
    steps: list[Mapping[str, Any]] = (
        state.get("normalizers") or state.get("pretokenizers") or ([state] if state else [])
    )
    return steps
