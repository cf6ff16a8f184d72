"""Ten thousand strings for tokenizers: every plane of Unicode, many scripts, code, control characters, real texts."""

import csv
import gzip
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Literal

NASTY = [
    "", " ", "\n\t\r", "\0", "a\0b", "  two  spaces ", "tab\tand\nnewline", "é e\u0301 \u0301", "ﬁ ﬂ Ⅷ ①", "İ ı ſ Σς",
    "straße", "你好，世界。", "漢字かな交じり文", "한국어 텍스트", "שלום עולם", "مرحبا بالعالم", "\u202ertl\u202c",
    "\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea", "\ufeffbom", "zero\u200bwidth\u200d",
    "\u2028\u2029", "\U0010ffff", "[CLS] [SEP] [MASK] [PAD] [UNK]", "<s></s><mask><pad>", "x <mask> y", "[SEP][SEP]",
    "<|endoftext|><|im_start|>", "don't can't I'm we'll", "a" * 300, "https://x.y/z?a=1&b=2#c", "1234567890 3.14 1,000",
    "!!!???...", "\uff26\uff35\uff2c\uff2c", "²³¹", "ÀÉÎ", "A\u00a0B", "CamelCaseWord", "snake_case-kebab",
]  # fmt: skip
# First and last code point of what words are made from.
SCRIPTS = [
    (0x41, 0x7A), (0xC0, 0x24F), (0x370, 0x3FF), (0x400, 0x52F), (0x531, 0x587), (0x5D0, 0x5EA), (0x620, 0x6D3),
    (0x700, 0x74A), (0x900, 0x97F), (0x980, 0x9FE), (0xB80, 0xBFA), (0xE01, 0xE5B), (0xE80, 0xEDF), (0xF00, 0xFDA),
    (0x1000, 0x109F), (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x1200, 0x137C), (0x13A0, 0x13F5), (0x1780, 0x17F9),
    (0x1E00, 0x1EFF), (0x1F00, 0x1FFE), (0x3041, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
    (0xF900, 0xFAFF), (0xFB00, 0xFDFF), (0xFE70, 0xFEFC), (0xFF01, 0xFFEE), (0x10330, 0x1034A), (0x12000, 0x12399),
    (0x1D400, 0x1D7FF), (0x20000, 0x2A6DF), (0x30000, 0x3134A),
]  # fmt: skip
SPACES = " \t\n\r\v\f\u00a0\u1680\u2002\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
CONTROLS = "".join(map(chr, [*range(32), 127, *range(128, 160), 0xAD, 0x200B, 0x200E, 0x202E, 0x2066, 0xFEFF, 0xFFFD]))
FACES = ["👍", "👩", "👨", "👧", "🐼", "❤", "☎", "🏳", "🤷", "🇩", "🇪", "🇨", "🇳", "1", "#"]
JOINERS = ["", "\u200d", "\ufe0f", "\ufe0e", "\u20e3", "🏻", "🏿", " ", "\ufe0f\u200d", "\U000e0067\U000e007f"]
CODE = [
    "def ", "return", "self.", "x_1", "fooBar", "HTTPServer", "(", ")", "[i]", "{", "}", "->", "::", "==", "!=", "&&",
    "//", "\n    ", "\n\t", "\r\n", ";", ";\n", '"s"', "'c'", "`", "$x", "@a", "#!", "\\n", "0xFF", "1e-5", "<b>",
    "</b>", "%s", "λ",
]  # fmt: skip
WORDS = [
    "don't", "I'M", "we'LL", "'s", "they've", "3.14", "1,000", "2024-01-31", "e.g.", "...", "?!", "—", "“q”", "naïve",
    "ＡＢＣ", "½", "x²", "№", "™", "€5", "a@b.co", "https://x.y/?q=1", "--flag", "pre-train", "Łódź", "İstanbul", "ß",
]  # fmt: skip
SPECIAL = [
    "[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]", "[cls]", "<s>", "</s>", "<pad>", "<unk>", "<mask>", "<|endoftext|>",
    "<|im_start|>", "<|im_end|>", "<tool_call>", "</think>", "<|fim_pad|>", "▁", "Ġ", "##ing",
]  # fmt: skip


def character(random: Random, first: int, last: int) -> str:
    code = random.randint(first, last)
    return "x" if 0xD800 <= code <= 0xDFFF else chr(code)


def any_plane(random: Random) -> str:
    """Assigned or not, of one plane or of all."""
    planes = [random.randrange(17)] if random.random() < 0.5 else range(17)
    starts = (0x10000 * random.choice(planes) for _ in range(random.randint(1, 20)))
    return "".join(character(random, start, start + 0xFFFF) for start in starts)


def words(random: Random) -> str:
    first, last = random.choice(SCRIPTS)
    lengths = [random.randint(1, 9) for _ in range(random.randint(1, 8))]
    return random.choice(["", " ", ", "]).join(
        "".join(character(random, first, last) for _ in range(length)) + random.choice(["", " "]) for length in lengths
    )


def marked(random: Random) -> str:
    """Letters under combining marks, in any normal form or none."""
    text = ""
    for _ in range(random.randint(1, 15)):
        text += random.choice("aeiouAEnSs kかखกا ")
        text += "".join(character(random, 0x300, 0x36F) for _ in range(random.choice([0, 0, 1, 1, 2, 4])))
    forms: list[Literal["NFC", "NFD", "NFKC", "NFKD"] | None] = [None, "NFC", "NFD", "NFKC", "NFKD"]
    form = random.choice(forms)
    return unicodedata.normalize(form, text) if form else text


def of(pieces: list[str] | str, glue: list[str], most: int) -> Callable[[Random], str]:
    def make(random: Random) -> str:
        return "".join(random.choice(pieces) + random.choice(glue) for _ in range(random.randint(1, most)))

    return make


KINDS: list[Callable[[Random], str]] = [
    any_plane, words, words, marked, of(FACES, JOINERS, 10), of(CODE, ["", " "], 20), of(WORDS, ["", " ", "  "], 12),
    of(CONTROLS, ["", "a", " "], 12), of(SPACES, [""], 20), of([*SPECIAL, "text"], ["", " ", "  a "], 6),
]  # fmt: skip


def mixed(random: Random) -> str:
    return "".join(random.choice(KINDS)(random) for _ in range(random.randint(2, 4)))


def long(random: Random, least: int) -> str:
    """Of at least so many characters."""
    text = ""
    while len(text) < least:
        text += random.choice([*KINDS, mixed])(random) + random.choice(["", " "])
    return text


def real_texts(assets: Path) -> list[str]:
    """STS-B's sentences and XQuAD's paragraphs and questions in four languages."""
    with gzip.open(assets / "data/stsbenchmark.tsv.gz", "rt", encoding="utf-8") as file:
        texts = [row[-1] for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    for language in ("en", "zh", "de", "es"):
        for article in json.loads((assets / f"data/xquad/xquad.{language}.json").read_text())["data"]:
            for paragraph in article["paragraphs"]:
                texts += [paragraph["context"], *(entry["question"] for entry in paragraph["qas"])]
    return texts


def make_texts(assets: Path | None, count: int = 10_000) -> list[str]:
    """Different ones, the same at every call: what breaks tokenizers, real texts, made ones, the longest of 50,000."""
    random = Random(0)
    texts = NASTY + (random.sample(real_texts(assets), count // 5) if assets else [])
    texts += [
        long(random, least) for least in (1000, 2000, 3000, 5000, 50_000) for _ in range(8 if least < 9999 else 2)
    ]
    unique = dict.fromkeys(texts)
    while len(unique) < count:
        unique[random.choice([*KINDS, mixed])(random)] = None
    texts = [*unique]
    random.shuffle(texts)
    return texts
