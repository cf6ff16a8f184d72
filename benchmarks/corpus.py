"""English texts of known token lengths, the same on every run: the prose of Python's own help pages and docstrings."""

import importlib
import inspect
import pydoc_data.topics
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

CountTokens = Callable[[str], int]

# Pure Python modules with long docstrings, in every release since 3.10.
_MODULES = (
    "argparse", "asyncio", "calendar", "collections", "concurrent.futures", "configparser", "contextlib", "csv",
    "dataclasses", "datetime", "decimal", "difflib", "doctest", "email.message", "enum", "fractions", "functools",
    "gettext", "heapq", "http.client", "http.cookiejar", "inspect", "ipaddress", "json", "locale", "logging",
    "logging.handlers", "mailbox", "multiprocessing", "optparse", "os", "pathlib", "pdb", "pickle", "pickletools",
    "platform", "pprint", "queue", "random", "shutil", "smtplib", "socket", "socketserver",
    "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "tokenize", "traceback",
    "unittest", "unittest.mock", "urllib.parse", "urllib.request", "uuid", "warnings", "weakref",
    "xml.dom.minidom", "xmlrpc.client", "zipfile",
)  # fmt: skip
_SENTENCE_END = re.compile(r"(?<=[.!?:])\s+(?=[A-Z\"'])")
_SPECIAL_TOKENS = 2


@dataclass(frozen=True)
class Workload:
    """Texts and the tokens that a model reads of each, special tokens included."""

    name: str
    texts: list[str]
    num_tokens: list[int]

    @property
    def total_tokens(self) -> int:
        return sum(self.num_tokens)

    def head(self, num_texts: int) -> "Workload":
        """The first `num_texts` texts."""
        return Workload(self.name, self.texts[:num_texts], self.num_tokens[:num_texts])

    def __str__(self) -> str:
        low, median, high = np.percentile(self.num_tokens, (0, 50, 100)).astype(int)
        mean = self.total_tokens / len(self.texts)
        return f"{self.name}: {len(self.texts)} texts, {low}-{high} tokens, mean {mean:.1f}, median {median}"


def numbered(texts: Sequence[str]) -> Iterator[str]:
    """The texts around and around, no two the same: identical ones are computed once, which is not to be measured."""
    return (f"{number} {text}" for number, text in enumerate(cycle(texts)))


def load(checkpoint: Path, max_seq_len: int = 512) -> dict[str, Workload]:
    """The three workloads, cut with the checkpoint's tokenizer.json and counted at `max_seq_len` tokens at most.

    passages  256 texts of 20 to 250 tokens, spread as paragraphs are (mean about 102)
    short     512 texts of 8 to 12 tokens, as queries are
    long      256 texts of at least `max_seq_len` tokens, so that every engine reads exactly that many
    """
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids) + _SPECIAL_TOKENS

    sentences = prose()
    ranges = {
        "passages": _passage_ranges(256),
        "short": [(8, 9 + i % 4) for i in range(512)],
        "long": [(max_seq_len, max_seq_len + 48)] * 256,
    }
    workloads = {}
    for name, lengths in ranges.items():
        texts = cut(sentences, lengths, count)
        workloads[name] = Workload(name, texts, [min(count(text), max_seq_len) for text in texts])
    return workloads


def prose() -> list[list[str]]:
    """Sentences, each a list of words; code, tables and duplicates are left out."""
    sentences = {}
    for page in _pages():
        for paragraph in page.split("\n\n"):
            if _is_prose(paragraph):
                for sentence in _SENTENCE_END.split(" ".join(paragraph.split())):
                    sentences[sentence] = sentence.split()
    return list(sentences.values())


def cut(sentences: list[list[str]], ranges: list[tuple[int, int]], count: CountTokens) -> list[str]:
    """One text per (least, most) token count, each from the start of a sentence, in order, around when they run out.

    Raises ValueError when no place in the sentences gives a text of the wanted length.
    """
    words = [word for sentence in sentences for word in sentence]
    starts = np.cumsum([0, *(len(sentence) for sentence in sentences[:-1])])
    texts: dict[str, None] = {}
    place = 0
    for least, most in ranges:
        for _ in range(len(starts)):
            start = int(starts[place])
            text = _longest(words, start, most, count)
            fits = text not in texts and least <= count(text) <= most
            next_start = start + len(text.split()) if fits else start + 1
            place = int(np.searchsorted(starts, next_start)) % len(starts)
            if fits:
                break
        else:
            raise ValueError(f"the corpus has no text of {least} to {most} tokens left")
        texts[text] = None
    return list(texts)


def _longest(words: list[str], start: int, most: int, count: CountTokens) -> str:
    """The longest text from word `start` with at most `most` tokens (or one word)."""
    low, high = 1, max(1, min(most, len(words) - start))  # a word is at least one token
    while low < high:
        middle = (low + high + 1) // 2
        if count(" ".join(words[start : start + middle])) <= most:
            low = middle
        else:
            high = middle - 1
    return " ".join(words[start : start + low])


def _passage_ranges(num_texts: int) -> list[tuple[int, int]]:
    rng = random.Random(0)
    targets = [min(250, max(24, round(rng.gammavariate(3.2, 30.5)))) for _ in range(num_texts)]
    return [(max(20, target - 8), target) for target in targets]


def _pages() -> Iterator[str]:
    yield from (pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    for name in _MODULES:
        module = importlib.import_module(name)
        yield inspect.getdoc(module) or ""
        yield from (inspect.getdoc(value) or "" for value in _members(module, name))


def _members(module: object, module_name: str) -> Iterator[object]:
    """Public functions and classes that the module itself defines, with the classes' methods."""
    for name, value in sorted(vars(module).items()):
        if name.startswith("_") or getattr(value, "__module__", None) != module_name:
            continue
        yield value
        if inspect.isclass(value):
            yield from (member for key, member in sorted(vars(value).items()) if inspect.isfunction(member))


def _is_prose(paragraph: str) -> bool:
    words = paragraph.split()
    if len(words) < 8 or ">>>" in paragraph or "::=" in paragraph or "----" in paragraph or "====" in paragraph:
        return False
    plain = sum(word.strip(".,;:()\"'’‘“”!?").isalpha() for word in words)
    return plain / len(words) > 0.8 and paragraph.rstrip().endswith((".", ":", "!", "?"))
