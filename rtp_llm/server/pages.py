"""What a browser sees: the playground, the API's description and a page to read it; no resource from elsewhere."""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

import orjson
from starlette.requests import Request as HttpRequest
from starlette.responses import Response as HttpResponse
from starlette.routing import Route

from rtp_llm.server.openapi import document

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


def routes() -> list[Route]:
    """GET /, /docs and /openapi.json."""
    description = _description()

    async def openapi(_: HttpRequest) -> HttpResponse:
        return HttpResponse(description, media_type="application/json")

    return [_page("/", "playground.html"), _page("/docs", "docs.html"), Route("/openapi.json", openapi)]


@cache
def _description() -> bytes:
    """The same for every app of a process: most of what one takes to make."""
    return orjson.dumps(document())


def _page(path: str, name: str) -> Route:
    html = Path(__file__).with_name(name).read_text(encoding="utf-8")
    headers = {
        "content-security-policy": content_security_policy(html),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }

    async def page(_: HttpRequest) -> HttpResponse:
        return HttpResponse(html, media_type="text/html", headers=headers)

    return Route(path, page)


def content_security_policy(html: str) -> str:
    """Only this page's own inline script and style, by hash; requests only to this server."""
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in _INLINE.findall(html):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    return (
        f"default-src 'none'; script-src {' '.join(hashes['script'])}; style-src {' '.join(hashes['style'])}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
