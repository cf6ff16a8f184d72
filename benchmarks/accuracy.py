"""What 8 bits change, on real texts: python -m benchmarks.accuracy [--assets ../shared/assets]

Every int8 engine's vectors beside our fp32 ones: cosines, and what the vectors are for. STS-B's test pairs; retrieval
of Cranfield's abstracts and of XQuAD's paragraphs; the order of the 50 abstracts that fp32 puts first for a query, as a
reranker would order them; a linear classifier, fitted on fp32 vectors of paragraphs, that names the article of a
question. Ends with one JSON line.
"""

import argparse
import gzip
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau, spearmanr

from benchmarks import checkpoints, report
from benchmarks.peers import ENGINES, OURS, Embed, FloatArray, Setup
from benchmarks.peers.process import pin

_ENGINES = (OURS, f"{OURS} int8", "ctranslate2 int8 streams")


@dataclass(frozen=True)
class Texts:
    """The texts, and what is known of them."""

    pairs: list[tuple[str, str, float]]  # STS-B: two sentences and their score
    abstracts: list[str]  # those that are relevant to some query
    queries: list[str]
    judged: dict[int, dict[int, int]]  # query -> abstract -> grade, 1 the best
    paragraphs: list[str]
    articles: list[int]  # of each paragraph
    questions: list[str]
    answered_in: list[int]  # the paragraph of each question


@dataclass(frozen=True)
class Vectors:
    """Normalised vectors of one engine."""

    left: FloatArray
    right: FloatArray
    abstracts: FloatArray
    queries: FloatArray
    paragraphs: FloatArray
    questions: FloatArray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=Path, default=Path("../shared/assets"), help="folder with data/")
    parser.add_argument("--checkpoint", default="", help="folder; default: all-MiniLM-L6-v2")
    parser.add_argument("--models", type=Path, default=checkpoints.MODELS, help="folder for converted checkpoints")
    parser.add_argument("--json", default="", help="also write the JSON line to this file")
    arguments = parser.parse_args()
    checkpoint = checkpoints.choose(arguments.checkpoint, "", arguments.models)
    setup = Setup(checkpoint, arguments.models.resolve(), 256, len(pin(0)))
    texts = load_texts(arguments.assets / "data")
    results: dict[str, dict[str, float]] = {}
    exact: Vectors | None = None
    for name in _ENGINES:
        if not ENGINES[name].missing():
            ENGINES[name].prepare(setup)
            vectors = embed_all(ENGINES[name].load(setup), texts)
            exact = exact or vectors
            results[name] = compare(vectors, exact, texts)
    measures = list(results[OURS])
    rows = [[measure, *(f"{results[name][measure]:.5f}" for name in results)] for measure in measures]
    print(report.describe(report.machine()), report.table(("", *results), rows), sep="\n")
    report.finish({"benchmark": "accuracy", "checkpoint": setup.label, "results": results}, arguments.json)


def load_texts(data: Path) -> Texts:
    with gzip.open(data / "stsbenchmark.tsv.gz", "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in file]
    pairs = [(row[-2], row[-1], float(row[-3])) for row in rows if row[0] == "test"]
    judgements = [map(int, line.split()) for line in (data / "cranfield" / "cranqrel").read_text().splitlines()]
    grades = {(query - 1, abstract - 1): grade for query, abstract, grade in judgements if grade > 0}
    kept = sorted({abstract for _, abstract in grades})
    judged: dict[int, dict[int, int]] = {query: {} for query, _ in grades}
    for (query, abstract), grade in grades.items():
        judged[query][kept.index(abstract)] = grade
    abstracts = _cranfield(data / "cranfield" / "cran.all.1400")
    articles = json.loads((data / "xquad" / "xquad.en.json").read_text())["data"]
    paragraphs = [(i, paragraph) for i, article in enumerate(articles) for paragraph in article["paragraphs"]]
    questions = [(i, qa["question"]) for i, (_, paragraph) in enumerate(paragraphs) for qa in paragraph["qas"]]
    return Texts(
        pairs=pairs,
        abstracts=[abstracts[i] for i in kept],
        queries=_cranfield(data / "cranfield" / "cran.qry"),
        judged=judged,
        paragraphs=[paragraph["context"] for _, paragraph in paragraphs],
        articles=[article for article, _ in paragraphs],
        questions=[question for _, question in questions],
        answered_in=[paragraph for paragraph, _ in questions],
    )


def _cranfield(path: Path) -> list[str]:
    records = re.split(r"^\.I \d+\s*$", path.read_text(), flags=re.MULTILINE)[1:]
    return [" ".join(record.split(".W", 1)[1].split()) for record in records]


def embed_all(embed: Embed, texts: Texts) -> Vectors:
    return Vectors(
        left=embed([left for left, _, _ in texts.pairs]),
        right=embed([right for _, right, _ in texts.pairs]),
        abstracts=embed(texts.abstracts),
        queries=embed(texts.queries),
        paragraphs=embed(texts.paragraphs),
        questions=embed(texts.questions),
    )


def compare(vectors: Vectors, exact: Vectors, texts: Texts) -> dict[str, float]:
    """The measures of one engine, by name."""
    passages = np.r_[_cosines(vectors.abstracts, exact.abstracts), _cosines(vectors.paragraphs, exact.paragraphs)]
    short = np.r_[_cosines(vectors.left, exact.left), _cosines(vectors.queries, exact.queries)]
    labels, exact_labels = (_articles(v.questions, exact, texts) for v in (vectors, exact))
    truth = np.array([texts.articles[paragraph] for paragraph in texts.answered_in])
    measures = {
        "passages: cosine, least": passages.min(),
        "passages: cosine, mean": passages.mean(),
        "short texts: cosine, least": short.min(),
        "short texts: cosine, mean": short.mean(),
        "STS-B test: Spearman x 100": 100 * _spearman(vectors, texts),
        "Cranfield: nDCG@10": _ndcg(vectors, texts),
        "XQuAD: paragraph found first": _found_first(vectors, texts),
        "order of 50: Kendall's tau": _order(vectors, exact),
        "article of a question: accuracy": (labels == truth).mean(),
        "article of a question: as fp32": (labels == exact_labels).mean(),
    }
    return {name: float(value) for name, value in measures.items()}


def _cosines(x: FloatArray, y: FloatArray) -> FloatArray:
    return np.asarray((x * y).sum(axis=1))


def _spearman(vectors: Vectors, texts: Texts) -> float:
    return float(spearmanr(_cosines(vectors.left, vectors.right), [score for _, _, score in texts.pairs]).statistic)


def _ndcg(vectors: Vectors, texts: Texts, depth: int = 10) -> float:
    """Grades 1 (best) to 4 gain 4 to 1."""
    discounts = 1 / np.log2(np.arange(2, depth + 2))
    ranked = np.argsort(-vectors.queries @ vectors.abstracts.T, axis=1)[:, :depth]
    scores = []
    for query, grades in texts.judged.items():
        gains = np.array([5 - grades.get(int(abstract), 5) for abstract in ranked[query]])
        ideal = np.sort([5 - grade for grade in grades.values()])[::-1][:depth]
        scores.append((gains @ discounts) / (ideal @ discounts[: len(ideal)]))
    return float(np.mean(scores))


def _found_first(vectors: Vectors, texts: Texts) -> float:
    return float(((vectors.questions @ vectors.paragraphs.T).argmax(axis=1) == np.array(texts.answered_in)).mean())


def _order(vectors: Vectors, exact: Vectors, depth: int = 50) -> float:
    """Mean over the queries: how alike both order what fp32 puts first."""
    scores, exact_scores = vectors.queries @ vectors.abstracts.T, exact.queries @ exact.abstracts.T
    first = np.argsort(-exact_scores, axis=1)[:, :depth]
    pairs: Any = zip(np.take_along_axis(scores, first, 1), np.take_along_axis(exact_scores, first, 1), strict=True)
    return float(np.mean([kendalltau(ours, theirs).statistic for ours, theirs in pairs]))


def _articles(questions: FloatArray, exact: Vectors, texts: Texts) -> Any:
    """The article that a ridge regression from fp32 vectors of paragraphs to their articles gives each question."""
    x, targets = exact.paragraphs, np.eye(max(texts.articles) + 1)[texts.articles]
    weights = np.linalg.solve(x.T @ x + 0.1 * np.eye(x.shape[1]), x.T @ targets)
    return (questions @ weights).argmax(axis=1)


if __name__ == "__main__":
    main()
