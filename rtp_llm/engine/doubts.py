"""What no file of a checkpoint tells, and changes its numbers: a line for each when it is loaded, with the way out."""

import logging

from rtp_llm.core import TaskType
from rtp_llm.engine.chat_rerank import ChatRerank
from rtp_llm.engine.rerank_template import RerankTemplate
from rtp_llm.engine.tokenizer_pool import PairEncoder
from rtp_llm.model_config import ModelConfig

logger = logging.getLogger(__name__)

_RERANKS = "rerank"
_ROLES = ("query", "document")


def warn_of_pairs(
    model_config: ModelConfig, reranking: PairEncoder | None, template: str | None, *, causal: bool
) -> None:
    """Of a decoder with a score for each pair: by which words it was trained to be asked.

    mxbai-rerank-v2 and bge-reranker-v2-gemma, made classifiers, are as silent of theirs as a reward model is.
    reranking  as `pair_encoder` gives it
    template   the tokenizer's chat template
    """
    is_scored = TaskType.RERANK in model_config.tasks and "SequenceClassification" in model_config.architecture
    if not causal or not is_scored or model_config.chat.asked is not None:
        return
    if reranking is None:
        how = "pairs are scored as they are, without a prompt"
    elif isinstance(reranking, RerankTemplate) and not any(_RERANKS in name for name in model_config.names):
        how = "pairs are put as Qwen3-Reranker's question, as to every Qwen3 that reranks"
    elif isinstance(reranking, ChatRerank) and not all(role in (template or "") for role in _ROLES):
        how = "pairs go through a chat template that is not made for queries and documents, as in sentence-transformers"
    else:
        return
    logger.warning(
        "%s: a %s: %s, and no file says how it was trained to be asked. Where it was by a prompt, write that as "
        "chat_template.jinja beside the tokenizer, of messages with the roles query and document",
        model_config.folder.name, model_config.architecture, how,
    )  # fmt: skip


def warn_of_direction(model_config: ModelConfig, pooling: str, *, causal: bool) -> None:
    """Of a decoder whose tokens' mean is taken: whether they see those after them, as KaLM-embedding-v2's do.

    pooling  of its dense vectors, in sentence-transformers' words
    """
    is_said = any(model_config.hf.get(key) is not None for key in ("is_causal", "use_bidirectional_attention"))
    if not causal or pooling != "mean" or is_said:
        return
    logger.warning(
        "%s: a token sees those before it only, as config.json has it, and the mean of all is taken: where the "
        "authors' code lets it see those after it, say --json_model_override_args '{\"is_causal\": false}'; true says "
        "that it does not", model_config.folder.name,
    )  # fmt: skip
