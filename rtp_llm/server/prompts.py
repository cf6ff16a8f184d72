"""What an input is for, in the words of several APIs -> the checkpoint's prompt for it, and the model's adapter."""

from collections.abc import Sequence
from typing import NamedTuple

from rtp_llm.adapter_choice import adapter_for, check_adapter
from rtp_llm.core import ModelInfo
from rtp_llm.errors import InvalidRequest
from rtp_llm.sides import DOCUMENT_PROMPTS, QUERY_PROMPTS, names_of_side, side_of

# Jina's words for the sides where code is looked for.
_OF_CODE = {"code.query": "query", "code.passage": "passage"}
_OTHER_WORDS = ("classification", "clustering", "separation", "text-matching", "text", "none")


class Purpose(NamedTuple):
    """The names of a prompt and of an adapter (LoRA); None: the default prompt, no adapter."""

    prompt_name: str | None = None
    adapter: str | None = None


def purpose_for(word: str | None, info: ModelInfo, param: str) -> Purpose:
    """What `word` asks for: the prompt of that name, or of the side that it stands for, and the adapter likewise.

    InvalidRequest for a word that neither the checkpoint nor any of the APIs knows, or whose adapter there is not.
    """
    if not word:
        return Purpose()
    return Purpose(_prompt_for(word, info, param), adapter_for(_OF_CODE.get(word, word), info, param))


def _prompt_for(word: str, info: ModelInfo, param: str) -> str | None:
    # Every model has "query" and "document", as in sentence-transformers: those that say something go before these.
    for prompts in ([name for name in info.prompts if name not in info.empty_prompts], info.prompts):
        found = _prompt_among(word, prompts)
        if found is not None:
            return found
    if word == "image":
        raise InvalidRequest(f"{param}: image: a text model is served; say what the texts are for", param=param)
    own = (*info.adapters, info.merged_adapter)
    if word in _OTHER_WORDS or word in own or _side(word) is not None:
        return None
    named = filter(None, (*info.prompts, *own, *QUERY_PROMPTS, *DOCUMENT_PROMPTS, *_OF_CODE, *_OTHER_WORDS))
    raise InvalidRequest(f"{param}: {word!r:.100} is not one of {', '.join(dict.fromkeys(named))}", param=param)


def _prompt_among(word: str, prompts: Sequence[str]) -> str | None:
    """The prompt of this name, or the first of the side that it stands for; None: there is none."""
    if word in prompts:
        return word
    return next((name for name in names_of_side(_OF_CODE.get(word, word)) if name in prompts), None)


def purpose_of_all(input_type: str | None, task: str | None, lora_task: str | None, info: ModelInfo) -> Purpose:
    """What these words ask for together, `lora_task` for an adapter alone; InvalidRequest where they are at odds."""
    if not (input_type or task or lora_task):
        return Purpose()
    by_type, by_task = purpose_for(input_type, info, "input_type"), purpose_for(task, info, "task")
    # An adapter's name says nothing of a side where one serves both.
    says_both = input_type and task and (task not in info.adapters or _side(task))
    if says_both and (by_type.prompt_name, _side(input_type)) != (by_task.prompt_name, _side(task)):
        message = f"input_type {input_type!r:.100} and task {task!r:.100} are at odds: send one of them"
        raise InvalidRequest(message, param="task")
    if lora_task:
        check_adapter(lora_task, info, "lora_task")
    named = {"input_type": by_type.adapter, "task": by_task.adapter, "lora_task": lora_task or None}
    asked = {param: adapter for param, adapter in named.items() if adapter is not None}
    if len(set(asked.values())) > 1:
        said = " and ".join(f"{param} {adapter!r:.100}" for param, adapter in asked.items())
        raise InvalidRequest(f"{said} are different adapters: send one of them", param=next(reversed(asked)))
    return Purpose(by_type.prompt_name if input_type else by_task.prompt_name, next(iter(asked.values()), None))


def _side(word: str | None) -> str | None:
    return side_of(_OF_CODE.get(word, word) if word else None)
