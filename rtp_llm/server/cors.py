"""Which web pages may call this server: the headers by which a browser knows."""

from collections.abc import Collection, Mapping

from rtp_llm.server.errors import Headers

_ANY = b"*"


class Cors:
    """`origins` as the option cors_origins gives them: `*` among them lets in any."""

    def __init__(self, origins: tuple[str, ...] = ("*",)) -> None:
        self._origins = frozenset(origin.rstrip("/").encode(errors="surrogateescape") for origin in origins)

    def headers(self, request: Mapping[bytes, bytes]) -> Headers:
        """What an answer to a request with these headers carries; nothing where no browser asks for a page."""
        origin = request.get(b"origin")
        if origin is None:
            return []
        if _ANY in self._origins:
            return [(b"access-control-allow-origin", _ANY), (b"access-control-expose-headers", _ANY)]
        if origin not in self._origins:
            return [(b"vary", b"origin")]
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", _ANY),
            (b"vary", b"origin"),
        ]

    @staticmethod
    def preflight(request: Mapping[bytes, bytes], methods: Collection[str]) -> Headers:
        """The answer to OPTIONS of a path that takes these methods, beside `headers`."""
        allow = ", ".join([*sorted(methods), "OPTIONS"]).encode()
        return [
            (b"access-control-allow-methods", allow),
            (b"access-control-allow-headers", request.get(b"access-control-request-headers", _ANY)),
            (b"access-control-max-age", b"86400"),
            (b"allow", allow),
        ]
