"""Random checkpoints of every family in two shapes, with one tokenizer of a few words."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

from tests.conftest import WORDS
from tests.models.oracle import add_noise

LIMIT = 40
ROOM = 200  # for the template of a Qwen3 that reranks
VOCAB = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
PAD = VOCAB.index("[PAD]")
ENDS = {f"{role}_token_id": PAD for role in ("bos", "eos", "cls", "sep")}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {"max_position_embeddings": LIMIT}),
    "roberta": ("Roberta", {"max_position_embeddings": LIMIT + PAD + 1, "type_vocab_size": 1}),
    "xlm-roberta": ("XLMRoberta", {"max_position_embeddings": LIMIT + PAD + 1, "type_vocab_size": 1}),
    "camembert": ("Camembert", {"max_position_embeddings": LIMIT + PAD + 1, "type_vocab_size": 1}),
    "ernie": ("Ernie", {"max_position_embeddings": LIMIT, "use_task_id": True}),
    "megatron-bert": ("MegatronBert", {"max_position_embeddings": LIMIT}),
    "xlm-roberta-xl": ("XLMRobertaXL", {"max_position_embeddings": LIMIT + PAD + 1, "type_vocab_size": 1}),
    "jina_embeddings_v3": ("JinaEmbeddingsV3", {"max_position_embeddings": LIMIT, "type_vocab_size": 1}),
    "gte": ("Gte", {"max_position_embeddings": LIMIT, "type_vocab_size": 2}),
    "nomic_bert": ("NomicBert", {"max_position_embeddings": LIMIT}),
    "modernbert": ("ModernBert", {"max_position_embeddings": LIMIT, "local_attention": 12, **ENDS}),
    "albert": ("Albert", {"max_position_embeddings": LIMIT, "embedding_size": 24, "num_hidden_groups": 2}),
    "electra": ("Electra", {"max_position_embeddings": LIMIT, "embedding_size": 24}),
    "distilbert": ("DistilBert", {"max_position_embeddings": LIMIT, "hidden_dim": 77}),
    # MPNet's padding token is number 1, whatever config.json says.
    "mpnet": ("MPNet", {"max_position_embeddings": LIMIT + 2, "pad_token_id": 1}),
    "deberta": (
        "DebertaV2",
        {
            "max_position_embeddings": LIMIT, "relative_attention": True, "position_biased_input": False,
            "pos_att_type": "p2c|c2p", "share_att_key": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm",
        },
    ),
    "deberta-v1": (
        "Deberta",
        {
            "max_position_embeddings": LIMIT, "relative_attention": True, "position_biased_input": False,
            "pos_att_type": "c2p|p2c",
        },
    ),
    "qwen2": ("Qwen2", {"max_position_embeddings": LIMIT}),
    "qwen2-both-ways": ("Qwen2", {"max_position_embeddings": LIMIT, "is_causal": False}),
    "qwen3": ("Qwen3", {"max_position_embeddings": ROOM}),
    "llama": ("Llama", {"max_position_embeddings": LIMIT, "attention_bias": True, "mlp_bias": True}),
    "eurobert": ("EuroBert", {"max_position_embeddings": LIMIT}),
    "mistral": ("Mistral", {"max_position_embeddings": LIMIT, "sliding_window": 12}),
    "gemma": ("Gemma", {"max_position_embeddings": LIMIT}),
    "gemma2": (
        "Gemma2",
        {
            "max_position_embeddings": LIMIT, "sliding_window": 12, "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 3.0, "attn_implementation": "eager",
        },
    ),
    "gemma3": ("Gemma3Text", {"max_position_embeddings": LIMIT, "sliding_window": 12}),
    "embeddinggemma": (
        "Gemma3Text",
        {"max_position_embeddings": LIMIT, "sliding_window": 12, "use_bidirectional_attention": True},
    ),
}  # fmt: skip
DECODERS = ("Qwen2", "Qwen3", "Llama", "EuroBert", "Mistral", "Gemma", "Gemma2", "Gemma3Text")
ENCODERS = [family for family, (stem, _) in FAMILIES.items() if stem not in DECODERS]
MAIN = ("bert", "roberta", "xlm-roberta", "qwen2", "qwen2-both-ways", "qwen3")
TYPED = (
    "bert",
    "ernie",
    "megatron-bert",
    "albert",
    "electra",
    "gte",
    "nomic_bert",
)  # they read which text of a pair a token is of
# Weights of 0.1 make attention choose: under the usual 0.02 it would be all but uniform at these widths.
COMMON = {"vocab_size": len(VOCAB), "pad_token_id": PAD, "initializer_range": 0.1}
SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": {
        "encoder": {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 2},
        "decoder": {"num_key_value_heads": 2, "head_dim": 8},
    },
    "odd": {
        "encoder": {"hidden_size": 60, "num_attention_heads": 6, "intermediate_size": 77, "num_hidden_layers": 3},
        "decoder": {"num_key_value_heads": 2, "head_dim": 10},
    },
}
Checkpoint: TypeAlias = tuple[Path, Any]


def save(folder: Path, family: str, shape: str, head: str = "Model", **options: Any) -> Any:
    """A checkpoint of a family -> transformers' model."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    stem, own = FAMILIES[family]
    parts = SHAPES[shape]
    widths = {**parts["encoder"], **({} if family in ENCODERS else parts["decoder"])}
    if family == "qwen3":
        widths["head_dim"] += 4
    config = getattr(transformers, f"{stem}Config")(**{**COMMON, **widths, **own, **options})
    model = getattr(transformers, stem + head)(config).eval()
    add_noise(model)
    model.save_pretrained(folder)
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if family in TYPED else [])]
    vocab = {word: i for i, word in enumerate(VOCAB)}
    transformers.BertTokenizer(vocab=vocab, model_max_length=LIMIT, model_input_names=names).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Checkpoint]:
    """`save`, once for the same arguments -> folder and transformers' model."""
    made: dict[str, Checkpoint] = {}

    def make(*arguments: str, **options: Any) -> Checkpoint:
        key = f"{arguments}{options}"
        if key not in made:
            folder = tmp_path_factory.mktemp(arguments[0])
            made[key] = folder, save(folder, *arguments, **options)
        return made[key]

    return make


def beside(folder: Path, place: Path) -> Path:
    """A copy of a checkpoint, to add files to; the same bytes on the disk."""
    place.mkdir()
    for file in folder.iterdir():
        os.link(file, place / file.name)
    return place


def all_lengths() -> list[list[int]]:
    """Token ids of every length from one to the limit, in no order."""
    random = np.random.default_rng(4)
    return [random.integers(PAD + 1, len(VOCAB), length).tolist() for length in random.permutation(LIMIT) + 1]


def mixed_batch(inputs: list[list[int]]) -> list[int]:
    """33 places of `inputs`, the shortest and the longest among them."""
    lengths = [len(ids) for ids in inputs]
    ends = [lengths.index(1), lengths.index(LIMIT)]
    others = [place for place in range(len(inputs)) if place not in ends]
    return [*others[:16], ends[1], *others[16:31], ends[0]]


def sentences() -> list[str]:
    """Of no word up to more than the limit holds."""
    random = np.random.default_rng(5)
    return [" ".join(random.choice(WORDS, number)) for number in (0, 1, 2, 9, 30, LIMIT - 2, LIMIT - 1, 3 * LIMIT)]
