"""HTTP: the dialects that clients speak, in front of any engine with `run`, `info`, `check_health` and `metrics`."""

from rtp_llm.server.app import create_app, serve
from rtp_llm.server.engine_like import EngineLike

__all__ = ["EngineLike", "create_app", "serve"]
