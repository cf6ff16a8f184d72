"""Late interaction: a projected vector for each token of a query or a document, to be compared by MaxSim.

Equals sentence-transformers' MultiVectorEncoder, of its own checkpoints, of PyLate's and of ColBERT's authors.
"""

import logging
from collections.abc import Sequence

import numpy as np

from rtp_llm import config_files
from rtp_llm.checkpoint import Parameter, bind, open_tensors, read_json
from rtp_llm.core import Batch, FloatArray, Int32Array, Params, Rows
from rtp_llm.errors import CheckpointError
from rtp_llm.late_interaction import LateInteraction, Layout
from rtp_llm.modules import Module
from rtp_llm.ops import Ops, Tensor
from rtp_llm.tasks import TaskSource, Vocabulary
from rtp_llm.tasks.dense import DenseStage, Normalize, Stage, load_stage, without_normalize
from rtp_llm.tasks.finishing import slice_and_normalize
from rtp_llm.tasks.token_vectors import Tokens

logger = logging.getLogger(__name__)

_TOKENS = "token_embeddings"
_SENTENCE = "sentence_embedding"
_INLINE = "linear.weight"


class MultiVector(Tokens):
    """`stages` project every token; of the vectors, those of `skipped` ids are left out on the sides `skips_on`.

    kept_ids  if not empty, the only ids of documents whose vectors are kept
    """

    def __init__(
        self, stages: Sequence[Stage], dimension: int, late: LateInteraction, skipped: Int32Array, *, normalizes: bool
    ) -> None:
        super().__init__(dimension)
        self.stages = stages
        self.normalizes = normalizes
        self.skipped = skipped
        self.skips_on = late.skips_on
        self.kept_ids = np.array(late.kept_ids, np.int32)

    @classmethod
    def load(cls, source: TaskSource) -> "MultiVector":
        """The chain that the checkpoint describes."""
        late = source.model_config.late
        assert late is not None
        stages, dimension = _inline(source) if late.layout == "authors" else _chain(source, late.layout)
        if late.layout != "native":
            stages.append(Normalize())
        stages, normalizes = without_normalize(stages)
        return cls(stages, dimension, late, _ids(late.skipped, source.vocabulary), normalizes=normalizes)

    def __call__(self, ops: Ops, hidden_states: Tensor, batch: Batch) -> Tensor:
        """[T, H] -> [T, dimension], before the final Normalize."""
        x = hidden_states
        for stage in self.stages:
            x = stage(ops, x)
        return x

    def finish(self, rows: Rows, params: Params, input_ids: Sequence[Int32Array]) -> list[FloatArray]:
        """-> [kept tokens, dimensions] an input."""
        return [
            slice_and_normalize(vectors[self._kept(ids, params.is_query(index))], params, normalizes=self.normalizes)
            for index, (vectors, ids) in enumerate(zip(rows, input_ids, strict=True))
        ]

    def _kept(self, ids: Int32Array, is_query: bool) -> Int32Array:
        """The places of the tokens whose vectors are kept."""
        kept = np.ones(len(ids), bool)
        if ("query" if is_query else "document") in self.skips_on:
            kept &= ~np.isin(ids, self.skipped)
        if len(self.kept_ids) and not is_query:
            kept &= np.isin(ids, self.kept_ids)
        return np.flatnonzero(kept).astype(np.int32)


def _chain(source: TaskSource, layout: Layout) -> tuple[list[Stage], int]:
    """The modules that make vectors, and their columns.

    A Normalize for one vector a text is passed over: there is none. In PyLate's layout so is a Pooling, and a Dense for
    such a vector is taken to the tokens.
    """
    is_pylate = layout == "pylate"
    stages: list[Stage] = []
    dimension = source.hidden_size
    for module in source.model_config.modules or ():
        if module.kind == "MultiVectorMask" or _normalizes_text(module) or (is_pylate and module.kind == "Pooling"):
            continue
        if module.kind == "HierarchicalTokenPooling":
            _check_token_pooling(module, stages)
            continue
        features = (_TOKENS, _SENTENCE) if is_pylate else (_TOKENS,)
        stage, dimension = load_stage(module, dimension, source.ops, features)
        stages.append(stage)
    if is_pylate and not any(isinstance(stage, DenseStage) for stage in stages):
        raise CheckpointError(
            f"{source.model_config.folder / 'modules.json'}: there is no Dense, which takes hidden states to the "
            "vectors that are compared"
        )
    return stages, dimension


def _normalizes_text(module: Module) -> bool:
    if module.kind != "Normalize":
        return False
    settings = read_json(module.folder, "config.json", required=False)
    return settings.get("module_input_name") in (None, _SENTENCE)


def _check_token_pooling(module: Module, stages: Sequence[Stage]) -> None:
    """CheckpointError for a pooling that does something; after a Normalize, one of factor 1 does not."""
    path = module.folder / "config.json"
    settings = read_json(module.folder, "config.json", required=False)
    config_files.check(path, settings, config_files.TOKEN_POOLING)
    if settings.get("pool_factor", 1) > 1:
        raise CheckpointError(
            f"{path}: pool_factor {settings['pool_factor']} is not served; remove the module from modules.json, and "
            "merge a document's vectors where they are stored"
        )
    if settings.get("normalize_embeddings") and not (stages and isinstance(stages[-1], Normalize)):
        raise CheckpointError(f"{path}: normalize_embeddings is served after a Normalize alone")


def _inline(source: TaskSource) -> tuple[list[Stage], int]:
    """The projection beside the encoder's tensors, [dimension, H], without a bias."""
    tensors = open_tensors(source.model_config.transformer_folder)
    shape = tensors.tensors[_INLINE].shape if _INLINE in tensors.tensors else ()
    dimension = shape[0] if shape else 0
    needed = {"weight": Parameter((_INLINE,), (dimension, source.hidden_size))}
    # What belongs to the encoder is the model's to be strict about.
    weights = bind(tensors, needed, ignore=("",))
    stage = DenseStage(source.ops.matrix(weights["weight"]), None, None, None, add_input=False)
    tensors.close()
    return [stage], dimension


def _ids(words: Sequence[str], vocabulary: Vocabulary) -> Int32Array:
    """Of those that are tokens of their own; the others can be no token's vector."""
    found = {word: vocabulary.token_id(word) for word in words}
    unknown = [word for word, token_id in found.items() if token_id is None]
    if unknown:
        logger.info("the skiplist's %s: not tokens of this tokenizer, and not heeded", " ".join(unknown))
    return np.array([token_id for token_id in found.values() if token_id is not None], np.int32)
