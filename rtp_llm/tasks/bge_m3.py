"""BGE-M3's linear heads, each in a file of its own. Source: FlagEmbedding, finetune/embedder/encoder_only/m3."""

from rtp_llm.checkpoint import Parameter, bind, inside, open_file
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
    path = inside(source.model_config.folder, name)
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: it holds the head of the task that was asked for with --task_type")
    tensors = open_file(path)
    shape = tensors.tensors["weight"].shape if "weight" in tensors.tensors else (0,)
    needed = {
        "weight": Parameter(("weight",), (shape[0], source.hidden_size)),
        "bias": Parameter(("bias",), (shape[0],)),
    }
    weights = bind(tensors, needed)
    linear = TokenLinear(source.ops.matrix(weights["weight"]), source.ops.vector(weights["bias"]), shape[0], activation)
    tensors.close()
    return linear
