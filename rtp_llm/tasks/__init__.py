"""Tasks: from hidden states to what a caller gets; a task knows nothing of architectures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Protocol

from rtp_llm.core import Batch, Int32Array, Output, Params, Reads, Rows, TaskType
from rtp_llm.errors import CheckpointError
from rtp_llm.model_config import ModelConfig
from rtp_llm.ops import Ops, Tensor

# task -> (module, class).
TASKS: dict[TaskType, tuple[str, str]] = {
    TaskType.DENSE: ("rtp_llm.tasks.dense", "Dense"),
    TaskType.SPARSE: ("rtp_llm.tasks.sparse", "Sparse"),
    TaskType.COLBERT: ("rtp_llm.tasks.token_vectors", "Colbert"),
    TaskType.TOKENS: ("rtp_llm.tasks.token_vectors", "Tokens"),
    TaskType.RERANK: ("rtp_llm.tasks.rerank", "Rerank"),
    TaskType.CLASSIFY: ("rtp_llm.tasks.classify", "Classify"),
    TaskType.TOKEN_CLASSIFY: ("rtp_llm.tasks.token_classify", "TokenClassify"),
    TaskType.CUSTOM: ("rtp_llm.tasks.custom", "Custom"),
}
# Dense embeddings where modules.json names code that comes with the checkpoint.
SHIPPED = ("rtp_llm.tasks.shipped", "Shipped")
# A vector a token where the checkpoint is one of late interaction.
MULTI_VECTOR = ("rtp_llm.tasks.multi_vector", "MultiVector")
# A reranker that reads all documents of a query at once.
LISTWISE = ("rtp_llm.tasks.listwise", "Listwise")
# Sparse embeddings of a masked language model.
SPLADE = ("rtp_llm.tasks.splade", "Splade")
# Either where modules.json has a Router.
ROUTED = {
    TaskType.DENSE: ("rtp_llm.tasks.routed_dense", "RoutedDense"),
    TaskType.SPARSE: ("rtp_llm.tasks.routed_sparse", "RoutedSparse"),
}


class Vocabulary(Protocol):
    """What a task may know of the tokenizer.

    special_ids  role (cls, eos, pad, unk, …) -> id
    vocab_size   ids run from 0 to below it
    """

    vocab_size: int

    @property
    def special_ids(self) -> Mapping[str, int]: ...

    def piece(self, token_id: int) -> str:
        """The vocabulary's own word for an id, which no other id has."""

    def token_id(self, piece: str) -> int | None:
        """The id of the vocabulary's own word; None where it has no such word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSource:
    """What a task is made from.

    pooling            the flag, for a checkpoint that does not say
    causal             whether the model's last token stands for all
    num_layers         of the model
    custom_module      the flag: FILE.py:Class
    trust_remote_code  the flag: whether code that comes with the checkpoint may run
    looked_up          folder of a Router's table of tokens -> the vocabulary of its own
    """

    model_config: ModelConfig
    pooling: str
    hidden_size: int
    causal: bool
    ops: Ops
    vocabulary: Vocabulary
    num_layers: int = 0
    custom_module: str = ""
    trust_remote_code: bool = False
    looked_up: Mapping[Path, Vocabulary] = field(default_factory=dict)


class Task(Protocol):
    """Post-processing in two steps: once per batch on the device, once per request on the host.

    A task is a subclass, and says what it does otherwise than most.

    dimension       columns of a finished row
    per_token       whether the first step leaves a row for each token instead of one for each sequence
    reads           the hidden states that it reads; of "first" or "last", it may be given sequences of that one row
    hidden_layers   the layers that it reads, side by side [T, len * H], by the numbers of transformers'
                    `output_hidden_states`: 0 is what goes into the first layer, n comes out of layer n; such a task
                    reads "all". (): the last layer alone
    num_read        of a sequence's ids [T], how many leading ones are computed, the last of which is read; None: all.
                    Only of a task that reads one hidden state of a causal model, whose tokens before it do not see more
    last_token      the id of the token that a sequence must end with; None: any
    chunkings       what it can do with the chunks of a long text (`Params.chunking`)
    purposes        for each way in which it reads inputs, the name of a prompt that asks for it; None: no prompt does
    pooling_name    how it makes a vector of a text, for people; empty where that has no name
    normalizes      whether a finished vector is of length 1 where a request does not say
    full_dimension  as many columns as a request may have, where that is known
    truncate_dim    the checkpoint's word for fewer; None: it has none
    """

    dimension: int
    per_token: bool
    reads: Reads
    hidden_layers: tuple[int, ...] = ()
    num_read: Callable[[Int32Array], int] | None = None
    last_token: int | None = None
    chunkings: tuple[str, ...] = ()
    purposes: tuple[str | None, ...] = (None,)
    pooling_name: str = ""
    normalizes: bool = False
    full_dimension: int | None = None
    truncate_dim: int | None = None

    @property
    def as_dense(self) -> "Task | None":
        """Of another task that gives a vector for each input too, the same as a dense one; None: it does not."""
        return None

    def __call__(self, ops: Ops, hidden_states: Tensor, batch: Batch) -> Tensor:
        """[T, H] -> [B, ·], or [T, ·] where `per_token`: the same for every request of the batch."""

    def check(self, params: Params) -> None:
        """Raise InvalidRequest for parameters that this checkpoint cannot serve."""

    def finish(self, rows: Rows, params: Params, input_ids: Sequence[Int32Array]) -> Output:
        """One request's rows and the tokens they were made from -> its answer, by its own parameters."""


def load_tasks(source: TaskSource) -> Mapping[TaskType, Task]:
    """Every task of the checkpoint; CheckpointError where a head that a task needs is not there."""
    tasks = {task_type: load_task(task_type, source) for task_type in source.model_config.tasks}
    for task in tuple(tasks.values()):
        vectors = task.as_dense
        if vectors is not None:
            tasks.setdefault(TaskType.DENSE, vectors)
    return tasks


def load_task(task_type: TaskType, source: TaskSource) -> Task:
    """One task; that of a chain with modules of the checkpoint's own runs them."""
    module, name = TASKS[task_type]
    foreign = next((entry.code for entry in source.model_config.modules or () if entry.code is not None), None)
    if source.model_config.router is not None and task_type in ROUTED:
        module, name = ROUTED[task_type]
    elif task_type is TaskType.DENSE and foreign is not None:
        module, name = SHIPPED
    elif task_type is TaskType.SPARSE and is_splade(source.model_config):
        module, name = SPLADE
    elif task_type is TaskType.COLBERT and source.model_config.late is not None:
        module, name = MULTI_VECTOR
    elif task_type is TaskType.RERANK and source.model_config.is_listwise:
        module, name = LISTWISE
    if foreign is not None and (module, name) in (SPLADE, MULTI_VECTOR):
        path = source.model_config.folder / "modules.json"
        raise CheckpointError(
            f"{path}: {foreign} is code that comes with the checkpoint; it is run for one vector a text alone"
        )
    task: Task = getattr(import_module(module), name).load(source)
    return task


def is_splade(config: ModelConfig) -> bool:
    """By modules.json; without it a masked language model that sparse vectors are asked of, as by SparseEncoder."""
    is_bare = config.modules is None and config.architecture.endswith("ForMaskedLM") and not config.is_bge_m3
    return config.splade is not None or is_bare
