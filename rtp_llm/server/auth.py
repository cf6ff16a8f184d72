"""API keys: who may ask, by `Authorization: Bearer KEY`, `x-api-key: KEY` or `api-key: KEY`; or as a password.

Open without a key are the probes, which load balancers and orchestrators ask, and the pages and their description,
which are the same on every server. All else needs one, the metrics too: they tell of the model and of its traffic.
"""

import base64
import binascii
import hashlib
import hmac
import logging
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from rtp_llm.config import ServerConfig
from rtp_llm.errors import ConfigError, Unauthorized
from rtp_llm.server import rtp, weaviate

logger = logging.getLogger(__name__)

OPEN_PROBES = frozenset({*rtp.HEALTH_PATHS, *rtp.LIVENESS_PATHS, *weaviate.PROBES, "/ping"})
OPEN_PAGES = frozenset({"/", "/docs", "/openapi.json"})
# Azure's clients send api-key, Anthropic's and many gateways x-api-key.
_KEY_HEADERS = (b"x-api-key", b"api-key")
_SENDABLE = re.compile(r"[!-~]+").fullmatch
_MOST_BYTES = 1 << 20
_LOOK_AGAIN = 1.0  # seconds between two looks at the file's date


class KeyRing:
    """The keys of the configuration and of its file; without any, everybody may ask.

    ConfigError when it is made from a file that cannot be read or holds no key. Later the file may fail: the keys that
    were read last stay, and the log says so. Its owner is the event loop.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._fixed = [_digest(_checked(key, "api_key")) for key in config.api_key]
        self._path = Path(config.api_key_file).expanduser() if config.api_key_file else None
        self._from_file: list[bytes] = []
        self._stamp: tuple[int, ...] = ()
        self._looked_at = time.monotonic()
        if self._path is not None:
            self._from_file = self._read(self._path)

    @property
    def is_open(self) -> bool:
        """Whether no key is needed."""
        return self._path is None and not self._fixed

    def check(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> None:
        """Unauthorized unless the path is open or the headers carry a key; `path` without a slash at its end."""
        if self.is_open or path in OPEN_PROBES or (path in OPEN_PAGES and method in ("GET", "HEAD")):
            return
        self.check_key(headers)

    def check_key(self, headers: Mapping[bytes, bytes]) -> None:
        """Unauthorized unless the headers carry a key, or none is needed."""
        if self.is_open:
            return
        given = _given(headers)
        if not given:
            raise Unauthorized("an API key is needed: send the header Authorization: Bearer KEY")
        self._follow_file()
        digests, known = [_digest(key) for key in given], False
        for key in (*self._fixed, *self._from_file):
            for digest in digests:
                # Every key is compared, in constant time: how long it takes tells nothing.
                known |= hmac.compare_digest(digest, key)
        if not known:
            raise Unauthorized("the API key is not one of this server's")

    def reload(self) -> None:
        """Read the file again at the next request, changed or not."""
        self._stamp, self._looked_at = (), 0.0

    def _follow_file(self) -> None:
        now = time.monotonic()
        if self._path is None or now - self._looked_at < _LOOK_AGAIN:
            return
        self._looked_at = now
        try:
            if _stamp(self._path) == self._stamp:
                return
            self._from_file = self._read(self._path)
        except (ConfigError, OSError) as error:
            logger.error("the API keys stay as they were: %s", error)
            return
        logger.info("read %d API keys again from %s", len(self._from_file), self._path)

    def _read(self, path: Path) -> list[bytes]:
        try:
            stamp = _stamp(path)
            content = _content(path)
            # What could not be read is read again at the next look: who may read it can change, and not the date.
            self._stamp = stamp
            lines = content.decode().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"api_key_file: {path} cannot be read: {error}", param="api_key_file") from None
        found = _keys(lines)
        keys = [_digest(_checked(key, f"api_key_file: {path}, line {number}")) for number, key in found]
        if not keys:
            raise ConfigError(f"api_key_file: {path} holds no key; write one a line", param="api_key_file")
        return keys


def _content(path: Path) -> bytes:
    """All of a file; OSError where there may be no end of it, or nothing the next time."""
    if not path.is_file():
        raise OSError("it is no regular file")
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise OSError(f"it is over {_MOST_BYTES} bytes")
    return content


def _stamp(path: Path) -> tuple[int, ...]:
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size, status.st_ino


def _keys(lines: Iterable[str]) -> list[tuple[int, str]]:
    """The keys among a file's lines, and where they stand."""
    stripped = ((number, line.strip()) for number, line in enumerate(lines, 1))
    return [(number, line) for number, line in stripped if line and not line.startswith("#")]


def _checked(key: str, where: str) -> bytes:
    """`key` as a header carries it; the message does not repeat it."""
    if not _SENDABLE(key):
        message = f"{where}: a key may have visible ASCII characters only, without spaces: no header carries others"
        raise ConfigError(message, param=where.partition(":")[0])
    return key.encode()


def _given(headers: Mapping[bytes, bytes]) -> list[bytes]:
    """The key of each header that has one: clients that insist on a bearer send a made-up one beside the right one."""
    scheme, _, credentials = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"basic":
        credentials = _password(credentials)
    elif scheme.lower() != b"bearer":
        credentials = b""
    found = [credentials, *(headers.get(name, b"") for name in _KEY_HEADERS)]
    return [key.strip() for key in found if key.strip()]


def _password(credentials: bytes) -> bytes:
    """The password of Basic credentials, whatever the user's name; what an address as http://any:KEY@host sends."""
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


def _digest(key: bytes) -> bytes:
    """Equally long whatever the key's length, and the key itself need not stay in memory."""
    return hashlib.sha256(key).digest()
