"""What an input is for, in the words of several APIs -> the checkpoint's prompt for it."""

from rtp_llm.core import ModelInfo
from rtp_llm.errors import InvalidRequest
from rtp_llm.sides import DOCUMENT_PROMPTS, QUERY_PROMPTS, side_of

# Jina's words for the sides where code is looked for.
_OF_CODE = {"code.query": "query", "code.passage": "passage"}
_OTHER_WORDS = ("classification", "clustering", "separation", "text-matching", "text", "none")


def prompt_for(word: str | None, info: ModelInfo, param: str) -> str | None:
    """The name of the prompt that `word` asks for: itself, or the side that it stands for; None: the default.

    InvalidRequest for a word that neither the checkpoint nor any of the APIs knows.
    """
    if not word:
        return None
    if word in info.prompts:
        return word
    if word == "image":
        raise InvalidRequest(f"{param}: image: a text model is served; say what the texts are for", param=param)
    word = _OF_CODE.get(word, word)
    for words in (QUERY_PROMPTS, DOCUMENT_PROMPTS):
        if word in words:
            return next((name for name in words if name in info.prompts), None)
    if word in _OTHER_WORDS:
        return None
    known = ", ".join(dict.fromkeys([*info.prompts, *QUERY_PROMPTS, *DOCUMENT_PROMPTS, *_OF_CODE, *_OTHER_WORDS]))
    raise InvalidRequest(f"{param}: {word!r:.100} is not one of {known}", param=param)


def prompt_of_both(input_type: str | None, task: str | None, info: ModelInfo) -> str | None:
    """The name of the prompt that either word asks for; InvalidRequest where both are there and differ in meaning."""
    by_type, by_task = prompt_for(input_type, info, "input_type"), prompt_for(task, info, "task")
    if input_type and task and (by_type, _side(input_type)) != (by_task, _side(task)):
        message = f"input_type {input_type!r:.100} and task {task!r:.100} are at odds: send one of them"
        raise InvalidRequest(message, param="task")
    return by_type if input_type else by_task


def _side(word: str) -> str | None:
    return side_of(_OF_CODE.get(word, word))
