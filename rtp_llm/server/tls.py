"""The certificate that HTTPS and gRPC serve with."""

import os
import ssl
from pathlib import Path

from rtp_llm.config import ServerConfig
from rtp_llm.errors import ConfigError


def check_certificate(config: ServerConfig) -> None:
    """ConfigError, which names the file, where the certificate and its key cannot be served with."""
    if not config.ssl_certfile:
        if config.ssl_keyfile:
            raise ConfigError("ssl_keyfile is given without ssl_certfile: give both, or neither", param="ssl_certfile")
        return
    for name, path in (("ssl_certfile", config.ssl_certfile), ("ssl_keyfile", config.ssl_keyfile)):
        if path and not os.path.isfile(path):
            raise ConfigError(f"{name}: there is no file {path!r}", param=name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password of its own, OpenSSL would ask for one on the terminal, and wait.
        context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile or None, password=lambda: b"")
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        where = "its key" if config.ssl_keyfile else "a key in it, since ssl_keyfile names none,"
        message = f"ssl_certfile: {config.ssl_certfile} and {where} cannot be used ({reason}): both as PEM, no password"
        raise ConfigError(message, param="ssl_certfile") from None


def read_certificate(config: ServerConfig) -> tuple[bytes, bytes]:
    """The private key and the certificate chain, as PEM."""
    return Path(config.ssl_keyfile or config.ssl_certfile).read_bytes(), Path(config.ssl_certfile).read_bytes()
