"""The public surface is what `__all__` says, no more and no less."""

import rtp_llm


def test_public_names() -> None:
    assert sorted(rtp_llm.__all__) == ["EngineConfig", "Model", "__version__"]
    assert all(hasattr(rtp_llm, name) for name in rtp_llm.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(rtp_llm, "Embedder")
