"""What an input is for, by the word that asks for its prompt: a query, or a document that queries look for."""

from typing import Literal

# Names of the prompts of either side, in sentence-transformers' words and in those of several APIs: Cohere, Voyage,
# Jina, NVIDIA.
QUERY_PROMPTS = ("query", "search_query", "retrieval.query")
DOCUMENT_PROMPTS = ("document", "search_document", "retrieval.passage", "passage", "corpus")


def names_of_side(prompt_name: str | None) -> tuple[str, ...]:
    """All names of the side that a name stands for, the usual first; none where it stands for neither."""
    return {"query": QUERY_PROMPTS, "document": DOCUMENT_PROMPTS, None: ()}[side_of(prompt_name)]


def side_of(prompt_name: str | None) -> Literal["query", "document"] | None:
    """The side whose prompt this is; None for every other name, and for none at all."""
    if prompt_name in QUERY_PROMPTS:
        return "query"
    return "document" if prompt_name in DOCUMENT_PROMPTS else None
