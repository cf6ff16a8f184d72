"""text-embeddings-inference's routes: its bodies, answers, headers, statuses and error form."""

from rtp_llm.server.tei.frame import error_form
from rtp_llm.server.tei.routes import GET_PATHS, INFO_PATH, PING_PATH, ROUTES, by_model, get_routes
from rtp_llm.server.tei.scores import RERANK
from rtp_llm.server.tei.tokens import TOKENIZE
from rtp_llm.server.tei.vertex import Vertex

__all__ = [
    "GET_PATHS",
    "INFO_PATH",
    "PING_PATH",
    "RERANK",
    "ROUTES",
    "TOKENIZE",
    "Vertex",
    "by_model",
    "error_form",
    "get_routes",
]
