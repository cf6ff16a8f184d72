"""BGE-M3's linear heads, each in a file of its own. Source: FlagEmbedding, finetune/embedder/encoder_only/m3."""

from rtp_llm.checkpoint import Parameter, bind, find, open_file
from rtp_llm.core import Batch
from rtp_llm.errors import CheckpointError
from rtp_llm.ops import Ops, Tensor, Weight
from rtp_llm.tasks import TaskSource


class TokenLinear:
    """A linear layer on every token."""

    def __init__(self, weight: Weight, bias: Tensor, dimension: int, activation: str | None) -> None:
        self.weight = weight
        self.bias = bias
        self.dimension = dimension
        self.activation = activation

    def __call__(self, ops: Ops, hidden_states: Tensor, batch: Batch) -> Tensor:
        """[T, H] -> [T, dimension]."""
        return ops.linear(hidden_states, self.weight, self.bias, self.activation)


def load_linear(source: TaskSource, name: str, activation: str | None = None) -> TokenLinear:
    """`name`, with `weight` [N, H] and `bias` [N]; CheckpointError where it is missing or does not fit the model."""
    folder = source.model_config.folder
    path = find(folder, name)
    if path is None:
        raise CheckpointError(
            f"{folder / name} is missing: it holds the head of the task that was asked for with --task_type"
        )
    tensors = open_file(path)
    (dimension,) = tensors.tensors["weight"].shape[:1] or (0,) if "weight" in tensors.tensors else (0,)
    needed = {
        "weight": Parameter(("weight",), (dimension, source.hidden_size)),
        "bias": Parameter(("bias",), (dimension,)),
    }
    weights = bind(tensors, needed)
    linear = TokenLinear(
        source.ops.matrix(weights["weight"]), source.ops.vector(weights["bias"]), dimension, activation
    )
    tensors.close()
    return linear
