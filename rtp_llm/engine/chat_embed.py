"""Embedders whose texts go through the checkpoint's chat template, as sentence-transformers 6 puts them.

Served are those whose template leaves a text as it is, after its prompt, as EmbeddingGemma 2's does for the sake of
images between texts: reading it plainly is the same.
"""

from collections.abc import Mapping

from rtp_llm.checkpoint import find
from rtp_llm.engine.tokenizer import Tokenizer
from rtp_llm.errors import CheckpointError, RtpError
from rtp_llm.model_config import ModelConfig

_PROMPT, _TEXT = "task: a | query: ", " a\n text  "
# transformers' processors add a text's special tokens after its template has been rendered; tokenizers alone do not.
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")


def check_verbatim(tokenizer: Tokenizer, model_config: ModelConfig) -> None:
    """CheckpointError where the template makes something else of a text than the plain reading."""
    folder = model_config.transformer_folder
    has_processor = any(find(folder, name) is not None for name in _PROCESSORS)
    if has_processor and _renders(tokenizer, model_config, {"user": _TEXT}, _TEXT):
        messages = {"system": _PROMPT, "user": _TEXT}
        if _renders(tokenizer, model_config, messages, _PROMPT + _TEXT):
            return
    raise CheckpointError(
        f"{folder / 'sentence_bert_config.json'}: modality_config has 'message', which puts every text through the "
        "tokenizer's chat template; of embedders that is served where the template leaves a text as it is. Without "
        "this key texts are read as they are, if that is what the model was trained on"
    )


def _renders(tokenizer: Tokenizer, model_config: ModelConfig, texts: Mapping[str, str], expected: str) -> bool:
    """Whether messages of these roles are rendered to that."""
    chat = model_config.chat
    has_parts, variables = chat.message_format != "flat", dict(chat.options)
    variables.pop("restore_suffix", None)
    is_prompting = bool(variables.pop("add_generation_prompt", False))
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}] if has_parts else text}
        for role, text in texts.items()
    ]
    try:
        text = tokenizer.chat_template.render(messages, add_generation_prompt=is_prompting, variables=variables)
    except RtpError:
        return False
    return text == expected
