"""Each command with each kind of checkpoint: what it takes by itself, and what it says where it can do nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.cli import embed, terminal
from tests.cli.conftest import FAST, Shell
from tests.conftest import TAGS
from tests.server.rtp_clients import served
from tests.tasks import late, routers
from tests.tasks.checkpoints import save, save_m3
from tests.tasks.test_splade import make as save_splade
from tests.tasks.test_static import save as save_static
from tests.verify.test_verify import HEAD

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("sentence_transformers")

TEXTS = "so sunny\n\nthe weather is lovely\nhe drove to stadium\n"


def _save(head: str, **shape: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        save(folder, head, **shape)
        return folder

    return make


def _m3(folder: Path) -> Path:
    save_m3(folder)
    return folder


MAKERS: dict[str, Callable[[Path], Path]] = {
    "dense": _save("BertModel"),
    "static": save_static,
    "m3": _m3,
    "splade": save_splade,
    "sparse router": routers.save_sparse,
    "dense router": lambda folder: routers.save_dense(folder, default_route="document"),
    "colbert": late.save,
    "reranker": _save(HEAD, num_labels=1),
    "classifier": _save(HEAD, num_labels=3),
    "tagger": _save("BertForTokenClassification", id2label=TAGS),
}
TAKEN = {"dense": "dense", "static": "dense", "m3": "dense", "dense router": "dense"} | {
    "splade": "sparse", "sparse router": "sparse", "colbert": "colbert",
}  # fmt: skip
RANKING = ("dense", "static", "m3", "dense router", "colbert", "reranker")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp("kind")) for name, make in MAKERS.items()}


@pytest.mark.parametrize("name", MAKERS)
def test_embed_takes_the_only_kind_there_is(
    name: str, folders: dict[str, Path], shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "progress", lambda: True)
    done = shell("embed", folders[name], "-", tmp_path / "out.jsonl", *FAST, stdin=TEXTS.encode())
    if name not in TAKEN:
        assert done.status == 2 and "not dense; `rtp-llm " in done.err and len(done.err.splitlines()) == 1
        return
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [sorted(row) for row in rows] == [sorted(["index", TAKEN[name]])] * 4
    assert f"{TAKEN[name]}: " in done.err
    monkeypatch.setattr(embed, "progress", lambda: False)
    told = shell("embed", folders[name], "-", "-", "--output", TAKEN[name], *FAST, stdin=TEXTS.encode())
    assert told.out == (tmp_path / "out.jsonl").read_text() and not told.err


def test_one_of_several_kinds_must_be_named(shell: Shell, folders: dict[str, Path]) -> None:
    for wrong in ("--output", "sparse"), ("--max_active_dims", "3"):
        done = shell("embed", folders["colbert"], "-", "-", *wrong, *FAST, stdin=b"so")
        assert done.status == 2 and "sparse" in done.err and len(done.err.splitlines()) == 1
    done = shell("embed", folders["splade"], "-", "-", "--max_active_dims", "1", *FAST, stdin=b"so sunny outside")
    assert len(json.loads(done.out)["sparse"]["indices"]) == 1


@pytest.mark.parametrize("name", MAKERS)
def test_rerank_by_whatever_scores(name: str, folders: dict[str, Path], shell: Shell) -> None:
    done = shell("rerank", folders[name], "so sunny", "--json", *FAST, stdin=TEXTS.encode())
    if name not in RANKING:
        assert done.status == 1 and "not rerank" in done.err and len(done.err.splitlines()) == 1 and not done.out
        return
    ranked = [json.loads(line) for line in done.out.splitlines()]
    scores = [entry["score"] for entry in ranked]
    assert len(ranked) == 4 and scores == sorted(scores, reverse=True)
    if name in ("dense", "m3", "colbert"):
        assert ranked[0]["index"] == 0
    assert shell("rerank", folders[name], "so sunny", *FAST) == (0, "", "")


def test_rerank_scores_as_http_does(folders: dict[str, Path], shell: Shell) -> None:
    documents = TEXTS.removesuffix("\n").split("\n")
    for name in ("dense", "dense router", "m3"):
        ranked = [
            *map(
                json.loads, shell("rerank", folders[name], "he", "--json", *FAST, stdin=TEXTS.encode()).out.splitlines()
            )
        ]
        with served(folders[name]) as server:
            answer = server.post("/rerank", query="he", documents=documents)["results"]
        assert [entry["index"] for entry in ranked] == [entry["index"] for entry in answer]
        assert [np.float32(e["score"]) for e in ranked] == [np.float32(e["relevance_score"]) for e in answer]


def test_a_cosine_has_no_activation(folders: dict[str, Path], shell: Shell) -> None:
    done = shell("rerank", folders["dense"], "so", "--activation", "sigmoid", *FAST, stdin=b"so")
    assert done.status == 2 and "activation: 'sigmoid'; the similarity of dense vectors has none" in done.err


@pytest.mark.parametrize("name", MAKERS)
def test_classify(name: str, folders: dict[str, Path], shell: Shell) -> None:
    done = shell("classify", folders[name], "--json", *FAST, stdin=TEXTS.encode())
    if name in ("reranker", "classifier", "tagger"):
        assert done.status == 0 and len(done.out.splitlines()) == 4
    else:
        assert done.status == 1 and "not classify" in done.err and len(done.err.splitlines()) == 1 and not done.out


def test_a_reranker_that_is_asked_a_question(assets: Path, shell: Shell, tmp_path: Path) -> None:
    from tests.tasks.test_qwen3_reranker import save as save_qwen3

    save_qwen3(folder := tmp_path / "Qwen3-Reranker-0.6B", assets)
    done = shell("rerank", folder, "panda", "--instruction", "Find the bear", *FAST, stdin=b"a bear\nhi\n")
    assert done.status == 0 and len(done.out.splitlines()) == 2
    refused = shell("embed", folder, "-", "-", *FAST, stdin=b"a bear")
    assert refused.status == 2 and "this model offers rerank, not dense; `rtp-llm rerank` prints that" in refused.err


@pytest.mark.parametrize("name", ["dense", "m3", "splade", "colbert", "reranker", "classifier", "tagger"])
def test_quantize_and_verify(name: str, folders: dict[str, Path], shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("the weather\nso sunny\n")
    (tmp_path / "pairs").write_text("the\tweather\nso\tsunny\n")
    texts = ("--texts", tmp_path / ("pairs" if name == "reranker" else "texts"))
    done = shell("verify", folders[name], *texts, *FAST)
    assert done.status == 0 and "EQUAL" in done.out, done
    done = shell("quantize", folders[name], tmp_path / "out", *texts, "--mean_cosine", 0, "--least_cosine", 0, *FAST)
    assert done.status == 0 and done.out.splitlines()[-1].endswith(f"{tmp_path / 'out'}"), done
    command = ["classify"] if name in ("classifier", "tagger") else ["rerank"] if name == "reranker" else ["embed"]
    rest = {"classify": ["-"], "rerank": ["so"], "embed": ["-", "-"]}[command[0]]
    assert shell(*command, tmp_path / "out", *rest, *FAST, stdin=b"so sunny").status == 0


def test_progress_is_for_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (True, False):
        monkeypatch.setattr("sys.stderr.isatty", lambda there=there: there, raising=False)
        assert terminal.progress() is there
