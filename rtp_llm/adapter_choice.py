"""Which of a model's adapters (LoRA) a request is computed with: by its name, or by what the words of an API mean."""

from rtp_llm.core import NO_ADAPTER, ModelInfo, Params
from rtp_llm.errors import InvalidRequest
from rtp_llm.sides import names_of_side

# jina-embeddings-v5 has one adapter for both sides, which its prompts tell apart.
_BOTH_SIDES = "retrieval"
# What v3 calls separation is for clustering, by its card, and is called so in v5 and in other APIs.
_SAME = {"clustering": "separation", "separation": "clustering"}
# Words that mean an adapter of Jina's, whatever the model has.
_JINAS = ("retrieval.query", "retrieval.passage", _BOTH_SIDES, "text-matching", "classification", *_SAME)
_WAY_OUT = "leave lora_task out of --json_model_override_args to have all, or name another model in `model`"


def check_adapter(name: str, info: ModelInfo, param: str) -> None:
    """InvalidRequest for an adapter that the model does not have."""
    if name and name in (*info.adapters, info.merged_adapter):
        return
    if info.parent:
        message = f"cannot be chosen beside the model {info.name!r}: name {info.parent!r} or another one in `model`"
        raise InvalidRequest(f"{param}: {name!r:.100} {message}", param=param)
    if info.merged_adapter:
        message = (
            f"{name!r:.100} cannot be chosen: this model was loaded with the adapter {info.merged_adapter!r} alone"
        )
        raise InvalidRequest(f"{param}: {message}; {_WAY_OUT}", param=param)
    known = f"is not one of the model's adapters: {', '.join(info.adapters)}"
    problem = known if info.adapters else "cannot be chosen: this model has no adapters; leave it out"
    raise InvalidRequest(f"{param}: {name!r:.100} {problem}", param=param)


def adapter_for(word: str, info: ModelInfo, param: str) -> str | None:
    """The adapter that a word for what inputs are for asks for; None: none.

    InvalidRequest for an adapter's word where the model has none for it.
    """
    # An adapter that is a model by its name is chosen by that alone.
    is_named = info.parent or info.lora_modules
    own = () if is_named else (info.merged_adapter,) if info.merged_adapter else info.adapters
    found = _found(word, own)
    if found is None and own and word in _JINAS:
        check_adapter(word, info, param)
    return found


def _found(word: str, adapters: tuple[str, ...]) -> str | None:
    if word in adapters:
        return word
    if _SAME.get(word) in adapters:
        return _SAME[word]
    words = names_of_side(word)
    names = (*words, _BOTH_SIDES) if words else ()
    return next((name for name in names if name in adapters), None)


def check_choice(params: Params, info: ModelInfo) -> None:
    """InvalidRequest where the parameters choose an adapter that there is not, or none where one is needed."""
    if params.adapter is not None:
        check_adapter(params.adapter, info, "adapter")
    elif info.needs_adapter and adapter_number(params, info) == NO_ADAPTER:
        raise InvalidRequest(
            "task: this model's vectors are made with one of its adapters: send `task`, or `lora_task` (in the library "
            f"`adapter`), one of {', '.join(info.adapters)}; or have it loaded with one for all requests: "
            "--json_model_override_args '{\"lora_task\": …}'",
            param="task",
        )


def adapter_number(params: Params, info: ModelInfo) -> int:
    """The place of the request's adapter among the model's; NO_ADAPTER: none.

    Queries that are compared with documents have retrieval's where they must have one.
    """
    compares = info.needs_adapter and params.num_queries is not None
    name = _BOTH_SIDES if params.adapter is None and compares else params.adapter
    return info.adapters.index(name) if name in info.adapters else NO_ADAPTER
