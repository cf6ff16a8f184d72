"""rtp_llm: a server and a library for embedding, reranker and classifier models."""

__version__ = "0.1.0"
