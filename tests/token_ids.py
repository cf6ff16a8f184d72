"""The token ids that a model reads, for tests that send them in the place of texts."""

from rtp_llm import Model


def token_ids(model: Model, text: str, *, add_special_tokens: bool = False) -> list[int]:
    """Without prompt or limit."""
    parts = model._engine.token_parts(text, add_special_tokens=add_special_tokens)
    return [token.id for part in parts for token in part.tokens]
