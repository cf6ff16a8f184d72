"""Embedders whose texts go through the checkpoint's chat template, as sentence-transformers 6 puts them.

Served are Qwen3-VL-Embedding, and those whose template leaves a text as it is, after its prompt, as EmbeddingGemma 2's
does for the sake of images between texts: reading it plainly is the same.
"""

import secrets
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rtp_llm.chat_format import ChatFormat
from rtp_llm.checkpoint import find
from rtp_llm.core import Input, Item, Params
from rtp_llm.engine.chat_form import ChatForm
from rtp_llm.engine.pairs import beginning, naming
from rtp_llm.engine.prompt_cache import PromptCache
from rtp_llm.engine.tokenizer import Tokenizer
from rtp_llm.errors import CheckpointError, InvalidInput, RtpError
from rtp_llm.model_config import ModelConfig

_PROMPT, _TEXT = "task: a | query: ", " a\n text  "
# transformers' processors add a text's special tokens after its template has been rendered; tokenizers alone do not.
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")

# Of Qwen3VLEmbedder, the authors' own class, which asks for the end of the template, and cuts it with the text.
INSTRUCTION = "Represent the user's input."
_AUTHORS = ChatFormat(message_format="structured", options={"add_generation_prompt": True, "restore_suffix": False})


class ChatEmbed:
    """Encodes single texts with what the template writes around each; ready token ids pass as they are.

    A prompt is the system's message. Equals sentence-transformers' SentenceTransformer where there is a modules.json;
    else Qwen3VLEmbedder of the authors' scripts, whose prompt ends in punctuation and is never empty.
    """

    def __init__(self, tokenizer: Tokenizer, model_config: ModelConfig) -> None:
        """CheckpointError for a template that there is not, or that changes a text."""
        if not tokenizer.chat_template.source and not model_config.chat.template:
            raise CheckpointError(
                f"{model_config.transformer_folder} has no chat template, through which its texts go: "
                "chat_template.jinja or chat_template.json is missing; download it again"
            )
        self._tokenizer = tokenizer
        self._is_authors = model_config.modules is None
        chat = _AUTHORS if self._is_authors else model_config.chat
        self._form = ChatForm(tokenizer, chat, ("user",), add_special_tokens=True)
        self._around = PromptCache[tuple[str, str]]()
        head, tail = self._frame(self._system(""))
        if head + _TEXT + tail != self._form.rendered(self._system(""), _TEXT):
            raise CheckpointError(
                f"{model_config.transformer_folder}: the chat template changes the texts that are put into it; such "
                "an embedder is not served: download it again, if it is Qwen3-VL-Embedding"
            )

    def encode(self, inputs: Sequence[Input], params: Params, start: int = 0) -> list[Item]:
        """An Item per input, in order; InvalidRequest as `Tokenizer.encode`, and for a pair."""
        if params.is_rendered:
            return self._tokenizer.encode(inputs, params, start)
        prompt = self._system(self._tokenizer.prompt_text(params))
        head, tail = self._frame(prompt)
        places = range(start, start + len(inputs))
        whole = [self._whole(value, index, params, head, tail) for index, value in zip(places, inputs, strict=True)]
        own = replace(params, prompt="", max_tokens_per_doc=None)
        items = self._tokenizer.encode(whole, own, start)
        for item, value in zip(items, inputs, strict=True):
            if isinstance(value, str) and params.add_special_tokens:
                self._form.restore_tail(item, prompt)
        return items

    def _whole(self, value: Input, index: int, params: Params, head: str, tail: str) -> Input:
        if isinstance(value, list):
            return value
        if not isinstance(value, str):
            raise InvalidInput(index, f" is a {type(value).__name__}; a text or a list of token ids is read")
        is_document = params.num_queries is not None and index >= params.num_queries
        with naming([index]):
            text = beginning(self._tokenizer, value, params.max_tokens_per_doc if is_document else None)
        return f"{head}{text}{tail}"

    def _system(self, prompt: str) -> str:
        if not self._is_authors:
            return prompt
        prompt = prompt.strip() or INSTRUCTION
        return prompt if unicodedata.category(prompt[-1]).startswith("P") else f"{prompt}."

    def _frame(self, prompt: str) -> tuple[str, str]:
        """What the template writes before and after a text."""
        found = self._around.get(prompt)
        if found is None:
            mark = secrets.token_hex(16)
            head, _, tail = self._form.rendered(prompt, mark).partition(mark)
            found = head, tail
            self._around.put(prompt, found)
        return found


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
