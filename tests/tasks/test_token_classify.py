"""Token classifiers against transformers' pipeline: real tokenizers and random weights, and the rules of our own."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm import Model
from rtp_llm.core import AnswerLimit, Params, Request, TaskType
from rtp_llm.engine import entity_finder
from rtp_llm.engine.tokenizer import Tokenizer
from rtp_llm.entities import Labels, find_entities
from rtp_llm.errors import CheckpointError, InvalidRequest, RequestTooLarge, UnsupportedTask
from tests.backends import BACKENDS
from tests.engine.token_texts import NASTY
from tests.models.oracle import worst
from tests.models.test_t5 import save as save_t5
from tests.tasks import families, token_classifiers
from tests.tasks.checkpoints import LIMIT, TEXTS, VOCAB, loaded, save
from tests.tasks.token_classifiers import KINDS, LABELS, STRATEGIES, check_same

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
HEAD = "BertForTokenClassification"
SENTENCES = [
    "Angela Merkel met Barack Obama in Berlin, the capital of Germany, on 3 May 2016.",
    "My e-mail is jane.doe@example.com,  call +49 30 1234567  or visit https://example.com/a?b=c!",
    "Où habite François Müller-Lüdenscheidt? À Łódź — pas à İstanbul.",
    "张伟住在北京，在清华大学学习。 田中さんは東京に住んでいます。",
    "🙂 Zoë 👩‍👩‍👧 lives in São Paulo🚀",
    "[CLS] Bob [SEP] <s> Alice </s> [MASK] <unk> <|endoftext|> Eve [UNK]",
    "unbelievably internationalised Wolfeschlegelsteinhausenbergerdorff",
]
TEXTS_OF_ALL_KINDS = [*SENTENCES, *NASTY]
LONG = [" ".join(SENTENCES) * 4, "word " * 2000, "New York, Los Angeles (CA); " * 300, "北京，上海。" * 700]

Checkpoint = tuple[Path, Any]


@pytest.fixture(scope="module")
def checkpoints(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """Folder and transformers' pipeline of a layout, made once."""
    made: dict[str, Checkpoint] = {}

    def make(layout: str) -> Checkpoint:
        if layout not in made:
            folder = tmp_path_factory.mktemp(layout)
            made[layout] = folder, token_classifiers.save(layout, assets, folder)
        return made[layout]

    return make


@pytest.fixture(scope="module")
def models(checkpoints: Callable[[str], Checkpoint]) -> Iterator[Callable[[str], Model]]:
    """Ours of a layout, loaded once: a real tokenizer takes half a second."""
    with ExitStack() as stack:
        yield cache(lambda layout: stack.enter_context(loaded(checkpoints(layout)[0], "native")))


@pytest.mark.parametrize("layout", KINDS)
def test_entities_are_the_pipelines(
    layout: str, checkpoints: Callable[[str], Checkpoint], models: Callable[[str], Model]
) -> None:
    (_, pipeline), model = checkpoints(layout), models(layout)
    # What a pipeline does, its forward but once for all strategies.
    outputs = {
        text: [pipeline.forward(part) for part in pipeline.preprocess(text, is_split_into_words=False)]
        for text in TEXTS_OF_ALL_KINDS
    }
    kinds = transformers.pipelines.token_classification.AggregationStrategy
    assert model.info.tasks == (TaskType.TOKEN_CLASSIFY,) and model.info.labels == tuple(LABELS.values())
    for strategy in STRATEGIES:
        for ignored in (["O"], [], ["PER", "B-LOC"]):
            options: dict[str, Any] = {"aggregation_strategy": strategy, "ignore_labels": ignored}
            ours = model.entities(TEXTS_OF_ALL_KINDS, **options)
            for text, entities in zip(TEXTS_OF_ALL_KINDS, ours, strict=True):
                expected = pipeline.postprocess(outputs[text], kinds[strategy.upper()], ignored)
                check_same([entity.as_dict() for entity in entities], expected, f"{strategy} {ignored} {text!r}")


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("layout", KINDS)
def test_long_texts_are_cut_where_the_pipeline_cuts(
    layout: str, side: Any, checkpoints: Callable[[str], Checkpoint], models: Callable[[str], Model]
) -> None:
    (_, pipeline), model = checkpoints(layout), models(layout)
    pipeline.tokenizer.truncation_side = side
    options: dict[str, Any] = {"aggregation_strategy": "first", "ignore_labels": []}
    for text in LONG:
        (ours,) = model.entities(text, truncation_side=side, **options)
        check_same([entity.as_dict() for entity in ours], pipeline(text, **options), text[:40])
        assert ours[-1].end > len(text) - 20 if side == "left" else ours[-1].end < 2000
    pipeline.tokenizer.truncation_side = "right"


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("layout", KINDS)
def test_windows_are_the_pipelines(
    layout: str, side: Any, checkpoints: Callable[[str], Checkpoint], models: Callable[[str], Model]
) -> None:
    """With a stride, a long text is read in windows, and what is found in several of them is told once."""
    (_, pipeline), model = checkpoints(layout), models(layout)
    pipeline.tokenizer.truncation_side = side
    texts = [text[:250] for text in [*LONG, *SENTENCES[:2], ""]]
    for strategy, stride in zip(STRATEGIES[1:], (0, 1, 13, 30), strict=True):
        options: dict[str, Any] = {"aggregation_strategy": strategy, "ignore_labels": ["O"], "stride": stride}
        found = model.entities(texts, truncation_side=side, **options)
        for text, ours in zip(texts, found, strict=True):
            theirs = pipeline(text, **options) if text else []
            check_same([entity.as_dict() for entity in ours], theirs, f"{strategy} {stride} {text[:40]}")
    assert [model.entities(text, truncation_side=side, **options)[0] for text in texts] == found
    pipeline.tokenizer.truncation_side = "right"


def test_windows_after_a_prompt(tagger: Path) -> None:
    options: dict[str, Any] = {"aggregation_strategy": "simple", "ignore_labels": [], "stride": 0}
    with loaded(tagger) as model:
        (found,) = model.entities("so sunny " * 60, prompt="the weather : ", **options)
    assert found[0].start == 0 and found[-1].end == 9 * 60 - 1


@pytest.mark.parametrize("ends", [False, True], ids=["serving", "ending"])
def test_entities_of_many_tokens_are_not_found_by_who_computes(
    ends: bool, tagger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are found in turns, with others between; by who computes once the threads for that have ended."""
    texts = [f"{'so sunny the weather is ' * 8} {number}" for number in range(60)]
    options: dict[str, Any] = {"aggregation_strategy": "simple", "ignore_labels": []}
    finders: list[str] = []

    def find(*args: Any, **options: Any) -> Any:
        finders.append(threading.current_thread().name)
        return find_entities(*args, **options)

    with loaded(tagger) as model:
        alone = [model.entities(text, **options)[0] for text in texts]
        monkeypatch.setattr(entity_finder, "find_entities", find)
        if ends:
            monkeypatch.setattr(model._engine._delivery, "_submit", ended)
        assert model.entities(texts, **options) == alone
    assert len(finders) == len(texts)
    assert any(name.startswith("tokenizer") for name in finders) is not ends


def ended(*args: Any) -> None:
    raise RuntimeError("the threads take no more work")


def test_who_gives_up_is_waited_for_no_longer(tagger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two turns nobody waits any more: what is left is not looked at, and the next request works."""
    seen: list[str] = []
    with loaded(tagger) as model:
        engine, params = model._engine, Params(aggregation_strategy="simple")

        def find(text: str, *args: Any, **options: Any) -> Any:
            seen.append(text)
            waiter.cancel()
            return []

        monkeypatch.setattr(entity_finder, "find_entities", find)
        waiter: Future[Any] = Future()
        engine.submit(
            Request(inputs=["the weather " * 40] * 60, tasks=(TaskType.TOKEN_CLASSIFY,), params=params), waiter
        )
        while any(engine._jobs.values()):
            time.sleep(0.01)
        assert 1 <= len(seen) < 60
        monkeypatch.undo()
        assert model.entities("so sunny")


@pytest.mark.parametrize("layout", KINDS)
def test_any_scores(layout: str, checkpoints: Callable[[str], Checkpoint]) -> None:
    """Labels that hold for a while, equal scores, and scores of exactly 1."""
    folder, pipeline = checkpoints(layout)
    tokenizer, random = Tokenizer(folder, max_seq_len=token_classifiers.LIMIT), np.random.default_rng(7)
    for text in [*SENTENCES, *LONG[:1]] * 4:
        strategies: Any = [(strategy, random.choice([*LABELS.values()], 2).tolist()) for strategy in STRATEGIES]
        for strategy, ignored in strategies:
            params = Params(aggregation_strategy=strategy, ignore_labels=tuple(ignored))
            (item,) = tokenizer.encode([text], params)
            held = np.repeat(random.integers(0, len(LABELS), item.num_tokens), 3)[: item.num_tokens]
            logits = random.integers(0, 4, (item.num_tokens, len(LABELS))).astype(np.float32)
            logits[np.arange(len(held)), held] += random.choice([1, 50])
            scores = np.exp(logits - logits.max(axis=1, keepdims=True))
            scores /= scores.sum(axis=1, keepdims=True)
            assert item.spans is not None
            ours = find_entities(
                text,
                item.input_ids,
                item.spans,
                scores,
                labels=Labels([*LABELS.values()]),
                words=tokenizer.words,
                params=params,
            )
            (read,) = pipeline.preprocess(text, is_split_into_words=False)
            given = {**read, "logits": torch.from_numpy(logits)[None]}
            kind = getattr(transformers.pipelines.token_classification.AggregationStrategy, strategy.upper())
            theirs = pipeline.postprocess([given], aggregation_strategy=kind, ignore_labels=ignored)
            check_same([entity.as_dict() for entity in ours], theirs, f"{strategy} {ignored} {text!r}")


@pytest.mark.parametrize("layout", ["bert-base-uncased", "roberta-base"])
def test_results_have_the_same_bits_in_any_batch(layout: str, models: Callable[[str], Model]) -> None:
    model = models(layout)
    scores, entities = model.classify_tokens(TEXTS_OF_ALL_KINDS), model.entities(TEXTS_OF_ALL_KINDS)
    backwards = model.classify_tokens(TEXTS_OF_ALL_KINDS[::-1])[::-1]
    for place, text in enumerate(TEXTS_OF_ALL_KINDS):
        assert np.array_equal(scores[place], backwards[place])
        assert np.array_equal(scores[place], model.classify_tokens([text])[0])
        assert entities[place] == model.entities(text)[0]


@pytest.fixture
def tagger(tmp_path: Path) -> Path:
    save(tmp_path, HEAD, id2label=LABELS)
    return tmp_path


def test_scores_of_tokens(tagger: Path) -> None:
    theirs = transformers.BertForTokenClassification.from_pretrained(tagger).eval()
    inputs: list[Any] = [[7, 8, 9], *TEXTS, [5]]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tagger)
    with loaded(tagger) as model:
        logits = model.classify_tokens(inputs, activation="none")
        scores = model.classify_tokens(inputs)
    for value, own, softmaxed in zip(inputs, logits, scores, strict=True):
        ids = tokenizer(value, truncation=True, max_length=LIMIT)["input_ids"] if isinstance(value, str) else value
        with torch.no_grad():
            expected = theirs(torch.tensor([ids])).logits[0]
        assert np.abs(own - expected.numpy()).max() <= 1e-5
        assert np.abs(softmaxed - expected.softmax(-1).numpy()).max() <= 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"classifier_bias": True, "norm_bias": True, "classifier_activation": "silu"}])
def test_modernberts_head(options: dict[str, Any], backend: str, tmp_path: Path) -> None:
    theirs = families.save(tmp_path, "modernbert", "odd", "ForTokenClassification", num_labels=5, **options)
    inputs = families.all_lengths()
    with torch.no_grad():
        expected = [theirs(torch.tensor([ids])).logits[0].numpy() for ids in inputs]
    with loaded(tmp_path, backend) as model:
        assert worst(model.classify_tokens(inputs, activation="none"), expected) <= 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_t5(backend: str, tmp_path: Path) -> None:
    theirs = save_t5(tmp_path, "gated", "ForTokenClassification", num_labels=3)
    vocab = {word: i for i, word in enumerate(VOCAB)}
    transformers.BertTokenizer(vocab=vocab).save_pretrained(tmp_path)
    inputs: list[Any] = [[5, 6, 7], [8], [*range(5, 30)]]
    with torch.no_grad():
        expected = [theirs(torch.tensor([ids])).logits[0].numpy() for ids in inputs]
    with loaded(tmp_path, backend) as model:
        rows = model.classify_tokens(inputs, activation="none")
    assert worst(rows, expected) <= 1e-5 * max(float(np.abs(logits).max()) for logits in expected)


def test_the_flag_and_what_the_model_does_not_do(tagger: Path) -> None:
    with loaded(tagger, task_type="token_classification") as model:
        assert model.info.tasks == (TaskType.TOKEN_CLASSIFY,) and model.info.dimension == len(LABELS)
        with pytest.raises(UnsupportedTask, match="labels tokens, not whole texts: ask for entities"):
            model.classify(["the weather"])
    with loaded(tagger, task_type="dense_embedding") as model:
        with pytest.raises(UnsupportedTask, match="offers dense, tokens, not token_classify"):
            model.entities("the weather")


@pytest.mark.parametrize(
    ("inputs", "params", "message"),
    [
        ([("a", "b")], {}, "input 0 is a pair of texts; entities are found in single texts"),
        (["a", [5, 6]], {}, "input 1 is token ids; entities are found in single texts"),
        (["a"], {"activation": "sigmoid"}, "activation: sigmoid; entities have the scores of softmax"),
        (["a"], {"chunking": "mean"}, "chunking 'mean' is of dense vectors alone"),
        (["a"], {"stride": 62}, "stride: 62 is not below 62, the tokens of a text that a window"),
        (["a"], {"stride": 60, "max_tokens": 9}, "stride: 60 is not below 7, the tokens of a text"),
        (["a " * 20_000], {"stride": 61}, "input 0 has 20000 tokens, which are over 16384 chunks of 62"),
        (["the " * 90], {"truncate": False}, "input 0 has at least 92 tokens and the limit is 64"),
    ],
)
def test_refusals(inputs: list[Any], params: dict[str, Any], message: str, tagger: Path) -> None:
    with loaded(tagger) as model, pytest.raises(InvalidRequest, match=message):
        wanted = Params(aggregation_strategy="simple", **params)
        model._engine.run_sync(Request(inputs=inputs, tasks=(TaskType.TOKEN_CLASSIFY,), params=wanted))


def test_a_stride_is_of_entities(tagger: Path) -> None:
    with loaded(tagger) as model, pytest.raises(InvalidRequest, match="stride is for entities by an aggregation_strat"):
        model.classify_tokens(["a"], stride=4)


def test_entities_beside_another_task(tmp_path: Path) -> None:
    save(tmp_path)
    with loaded(tmp_path) as model, pytest.raises(InvalidRequest, match="aggregation_strategy is of token_classify"):
        model.embed_all(["a"], aggregation_strategy="simple")


def test_an_answer_has_a_limit(tagger: Path) -> None:
    with loaded(tagger) as model:
        sizes: list[tuple[Any, int]] = [(None, 4 * 7 * 12), ("none", 4 * (7 * 12 + 128))]
        for strategy, size in sizes:
            params = Params(aggregation_strategy=strategy)

            def ask(most: int, params: Params = params) -> Request:
                limit = AnswerLimit(most, 12)
                return Request(
                    inputs=["the weather"], tasks=(TaskType.TOKEN_CLASSIFY,), params=params, answer_limit=limit
                )

            model._engine.run_sync(ask(size))
            with pytest.raises(RequestTooLarge, match=f"of 4 tokens or more take {size} bytes, the limit is"):
                model._engine.run_sync(ask(size - 1))


def test_a_prompt_has_no_entities(tagger: Path) -> None:
    options: dict[str, Any] = {"aggregation_strategy": "none", "ignore_labels": []}
    with loaded(tagger) as model:
        (alone,) = model.entities("so sunny", **options)
        (found,) = model.entities("so sunny", prompt="the weather : ", **options)
    assert [(e.word, e.start, e.end) for e in found] == [(e.word, e.start, e.end) for e in alone]
    assert [entity.index for entity in found] == [4, 5] and [entity.index for entity in alone] == [1, 2]


def test_an_encoder_without_a_head_is_refused(tmp_path: Path) -> None:
    save(tmp_path)
    with pytest.raises(CheckpointError, match=r"no token classifier's head .*head\.norm with classifier; score"):
        with loaded(tmp_path, task_type="token_classification"):
            pass


def test_modernbert_without_its_hidden_layer_is_refused(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    families.save(tmp_path, "modernbert", "odd", "ForTokenClassification", num_labels=5)
    path = tmp_path / "model.safetensors"
    kept = {name: value for name, value in safetensors.load_file(path).items() if not name.startswith("head.")}
    safetensors.save_file(kept, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="no token classifier's head"):
        with loaded(tmp_path):
            pass


def test_labels_that_do_not_fit(tagger: Path) -> None:
    path = tagger / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "id2label": {"0": "O", "1": "B-PER"}}))
    with pytest.raises(CheckpointError, match="classifier.weight has 7 rows, but config.json names 2 labels"):
        with loaded(tagger):
            pass


def test_any_iterables(tagger: Path) -> None:
    with Model(str(tagger), backend="numpy") as model:
        whole = model.entities(["so sunny", ""], ignore_labels=[])
        assert model.entities((text for text in ("so sunny", "")), ignore_labels=()) == whole
        assert whole[1] == [] and model.entities([]) == []
        assert model.entities("so sunny", ignore_labels=iter([])) == whole[:1]
        with pytest.raises(InvalidRequest, match="aggregation_strategy: 'best'"):
            model.entities("so", aggregation_strategy="best")  # type: ignore[arg-type]
