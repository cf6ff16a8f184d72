"""rtp_llm: a server and a library for embedding, reranker and classifier models."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rtp_llm.config import EngineConfig
    from rtp_llm.offline import Model

__all__ = ["EngineConfig", "Model", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that `import rtp_llm` and `--help` cost nothing.
    if name == "Model":
        from rtp_llm.offline import Model

        return Model
    if name == "EngineConfig":
        from rtp_llm.config import EngineConfig

        return EngineConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
