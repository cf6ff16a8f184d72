"""Which encoder makes items of what is embedded, and which of what is reranked, as the checkpoint's files say."""

import logging
from collections.abc import Mapping
from pathlib import Path

from rtp_llm.config import EngineConfig
from rtp_llm.core import TaskType
from rtp_llm.engine.chat_embed import ChatEmbed, check_verbatim
from rtp_llm.engine.chat_rerank import chat_rerank
from rtp_llm.engine.flag_rerank import FlagRerank
from rtp_llm.engine.late_encoder import LateEncoder
from rtp_llm.engine.listwise import Listwise
from rtp_llm.engine.pair_text import NEMOTRON, PairText
from rtp_llm.engine.rerank_template import QWEN3, QWEN3_VL, RerankTemplate
from rtp_llm.engine.route_encoder import RouteEncoder
from rtp_llm.engine.tokenizer import Tokenizer
from rtp_llm.engine.tokenizer_files import model_max_length
from rtp_llm.engine.tokenizer_pool import Encoder, PairEncoder
from rtp_llm.model_config import ModelConfig
from rtp_llm.modules import STATIC, TABLES

logger = logging.getLogger(__name__)

# What bounds a text that is only looked up is the time that its tokens take.
_LONGEST_LOOKUP = 1 << 16


def pair_encoder(tokenizer: Tokenizer, model_config: ModelConfig) -> PairEncoder | None:
    """How a reranker that reads a pair as one text is asked: by its chat template, else as its authors do.

    None: plainly, as two texts. Where no modules.json says otherwise, CrossEncoder heeds the chat template of whatever
    has one; NVIDIA's checkpoints have that of the model which they were made of.
    """
    if model_config.is_listwise:
        return Listwise(tokenizer)
    if model_config.is_nemotron and not model_config.chat.asked:
        return PairText(tokenizer, NEMOTRON)
    if not model_config.is_language_reranker:
        is_bare = TaskType.RERANK in model_config.tasks and model_config.modules is None
        has_template = is_bare and tokenizer.chat_template.source
        return chat_rerank(tokenizer, model_config.chat, or_else="pairs are read as they are") if has_template else None
    if model_config.is_flag_reranker:
        return FlagRerank(tokenizer)
    own = "the prompt of its authors' example is used" if model_config.is_qwen3_reranker else ""
    question = QWEN3_VL if model_config.is_qwen3_vl else QWEN3
    return chat_rerank(tokenizer, model_config.chat, or_else=own) or RerankTemplate(tokenizer, question)


def embedding_encoder(
    config: EngineConfig, model_config: ModelConfig, tokenizer: Tokenizer, looked_up: Mapping[Path, Tokenizer]
) -> Encoder:
    """How texts that are embedded are read: by the checkpoint's sides or routes, else plainly."""
    if model_config.is_chat_embedder:
        return ChatEmbed(tokenizer, model_config)
    if model_config.chat.asked and not model_config.is_language_reranker:
        check_verbatim(tokenizer, model_config)
    if model_config.late is not None:
        return LateEncoder(tokenizer, model_config.late, config.max_seq_len)
    if model_config.modules is None and TaskType.DENSE in model_config.tasks and tokenizer.chat_template.source:
        logger.warning(
            "%s: texts are read as they are; sentence-transformers from 5.4 on would put each through the tokenizer's "
            "chat template, since there is no modules.json", model_config.folder,
        )  # fmt: skip
    router = model_config.router
    if router is None:
        return tokenizer
    by_route = {route: modules[0].folder for route, modules in router.routes.items()}
    own = {route: looked_up[folder] for route, folder in by_route.items() if folder in looked_up}
    return RouteEncoder(tokenizer, router, own)


def lookup_tokenizers(config: EngineConfig, model_config: ModelConfig) -> dict[Path, Tokenizer]:
    """Of the routes that look tokens up: the folder of such a table -> its own tokenizer.

    Its limit is the flag, else tokenizer_config.json's, whatever the model of the other routes can read.
    """
    routes = model_config.router.routes.values() if model_config.router else ()
    tables = dict.fromkeys(modules[0] for modules in routes if modules[0].kind in TABLES)
    return {
        table.folder: Tokenizer(
            table.folder,
            max_seq_len=min(config.max_seq_len or model_max_length(table.folder), _LONGEST_LOOKUP),
            prompts=model_config.prompts,
            default_prompt_name=model_config.default_prompt_name,
            plain=table.kind == STATIC,
            may_be_empty=True,
        )
        for table in tables
    }
