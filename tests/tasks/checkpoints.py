"""Random checkpoints with heads, their tokenizer, and how they are loaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rtp_llm import Model
from tests.conftest import WORDS
from tests.models.test_bert import save_bert

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
TEXTS = [
    "the weather is lovely today .",
    "",
    "he drove to stadium",
    "a " * 90,
    "Query: UNKNOWN words outside! outside!",
    "so so so sunny",
    "the query passage",
]
PAIRS = [
    ("the weather", "is lovely today"),
    ("he drove", ""),
    ("", "sunny outside"),
    ("a " * 50, "the weather is lovely " * 20),
    ("query " * 90, "passage"),
    ("he", "a b c " * 60),
    ("UNKNOWN", "so sunny !"),
]
LIMIT = 64
TINY: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
ODD: dict[str, Any] = {"hidden_size": 60, "num_attention_heads": 5, "intermediate_size": 77, "num_hidden_layers": 3}
SHAPES = {"tiny": TINY, "odd": ODD}


def save(folder: Path, head: str = "BertModel", **shape: Any) -> Any:
    """A tiny random BERT with its tokenizer, of at most `LIMIT` tokens -> transformers' model."""
    from transformers import BertTokenizer

    shape = {**TINY, "max_position_embeddings": LIMIT, **shape}
    model = save_bert(folder, head, vocab_size=len(VOCAB), **shape)
    BertTokenizer(vocab={word: i for i, word in enumerate(VOCAB)}).save_pretrained(folder)
    return model


def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def save_m3(folder: Path, colbert_dim: int | None = None, **shape: Any) -> tuple[Any, Any, Any]:
    """BGE-M3's files around a random BERT -> the encoder, the sparse and the colbert layer."""
    import torch

    model = save(folder, **shape)
    hidden = model.config.hidden_size
    torch.manual_seed(3)
    sparse, colbert = torch.nn.Linear(hidden, 1), torch.nn.Linear(hidden, colbert_dim or hidden)
    torch.save(sparse.state_dict(), folder / "sparse_linear.pt")
    torch.save(colbert.state_dict(), folder / "colbert_linear.pt")
    return model, sparse, colbert


@contextmanager
def loaded(folder: Path, backend: str = "numpy", **options: Any) -> Iterator[Model]:
    """Ours, on a backend that this machine has."""
    from tests.backends import BACKENDS

    BACKENDS[backend]()
    with Model(str(folder), backend=backend, **options) as model:
        yield model
