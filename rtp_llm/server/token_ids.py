"""Token ids that a caller sends: which cannot be of this model's tokenizer, and the text of the others."""

from collections.abc import Sequence

from rtp_llm.engine.tokens import outlier
from rtp_llm.errors import InvalidInput, InvalidRequest, RequestTooLarge
from rtp_llm.server.engine_like import EngineLike

# What is decoded in some 0.1 s, which is one piece of work and holds the interpreter.
_MOST_IDS = 200_000


def check_ids(ids: Sequence[int], place: str, vocab_size: int) -> None:
    """InvalidRequest for ids that cannot be of this model's tokenizer; `place` names them."""
    if not ids:
        raise InvalidRequest(f"{place} is an empty list of token ids", param=place)
    wrong = outlier(ids, vocab_size)
    if wrong is not None:
        raise InvalidRequest(
            f"{place}: token id {wrong} is outside this model's vocabulary of {vocab_size}. Token ids must come from "
            "the model's own tokenizer; LangChain's OpenAIEmbeddings sends tiktoken ids unless it is made with "
            "check_embedding_ctx_length=False",
            param=place,
        )


def decoded(engine: EngineLike, ids: list[int], place: str, *, skip_special_tokens: bool) -> str:
    """The text of token ids; what is wrong with them is told by the name of their field, `place`.

    RequestTooLarge for more than are decoded at a time.
    """
    if len(ids) > _MOST_IDS:
        raise RequestTooLarge(f"{place} has {len(ids)} token ids, the limit is {_MOST_IDS}: split it", param=place)
    try:
        return engine.decode(ids, skip_special_tokens=skip_special_tokens)
    except InvalidInput as error:
        raise error.at(place, "") from None
