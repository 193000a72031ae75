"""The TLS context of one client: made once, off the event loop, and checked.

Making one takes 50 ms, because all CA certificates of the system are read. If they can't be read,
OpenSSL reports no error and makes a context without certificates. Each handshake would then fail
with "certificate not trusted", even if the files were missing only for a moment, or no file could
be opened. Reading may also hang, for example on a network file system that doesn't answer.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from trio_broker.transports.threads import ThreadLimit

# The names that OpenSSL looks for in a directory: the hash of a subject, and a number.
_HASHED_NAME: Final = re.compile(r"[0-9a-f]{8}\.[0-9]+")

# With these errors a file or directory holds no certificate. Others may be temporary.
_ABSENT: Final = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)

_threads: Final = ThreadLimit("CA certificates")


class NoCertificatesError(Exception):
    """There are no CA certificates; the message says where they were looked for."""


class ClientContext:
    """The TLS context of one client."""

    def __init__(self, given: ssl.SSLContext | None = None) -> None:
        self._given = given
        self._made: ssl.SSLContext | None = None
        self._is_outdated = False

    async def get(self) -> ssl.SSLContext:
        """The context, made at the first call.

        Raises:
            NoCertificatesError: There are no CA certificates.
            OSError: The certificates can't be read now.
        """
        if self._given is not None:
            await trio.lowlevel.checkpoint()
            return self._given
        if self._made is None:
            self._made = await _make_in_thread()
        elif self._is_outdated:
            # If reading hangs until this is cancelled, the next attempt uses the old context.
            self._is_outdated = False
            try:
                self._made = await _make_in_thread()
            except (NoCertificatesError, OSError):
                # The old one is better than none.
                self._is_outdated = True
        else:
            await trio.lowlevel.checkpoint()
        return self._made

    def distrusted(self) -> None:
        """Read the CA certificates again next time, as the system's may have been replaced."""
        self._is_outdated = True


async def _make_in_thread() -> ssl.SSLContext:
    return await trio.to_thread.run_sync(_make, abandon_on_cancel=True, limiter=_threads.limiter())


def _make() -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not _has_certificates(context):
        # Read them again, as these calls report errors. OpenSSL would look into the directories
        # during each handshake: with everything read now, it doesn't.
        for name in _files():
            with suppress(*_ABSENT, ssl.SSLError):
                context.load_verify_locations(cafile=name)
        for certificate in _certificates_in_directories():
            with suppress(ssl.SSLError):
                context.load_verify_locations(cadata=certificate)
    if not _has_certificates(context):
        paths = ssl.get_default_verify_paths()
        places = " or ".join([*_files(), *_directories()])
        raise NoCertificatesError(
            f"no CA certificate was found in {places}: install the system's CA certificates, set "
            f"{paths.openssl_cafile_env}, or pass ssl_context"
        )
    return context


def _has_certificates(context: ssl.SSLContext) -> bool:
    return context.cert_store_stats()["x509"] > 0


def _files() -> list[str]:
    paths = ssl.get_default_verify_paths()
    return [os.environ.get(paths.openssl_cafile_env) or paths.openssl_cafile]


def _directories() -> list[str]:
    paths = ssl.get_default_verify_paths()
    directories = os.environ.get(paths.openssl_capath_env) or paths.openssl_capath
    return [directory for directory in directories.split(os.pathsep) if directory]


def _certificates_in_directories() -> Iterator[str]:
    for directory in _directories():
        with suppress(*_ABSENT):
            for name in sorted(os.listdir(directory)):
                if _HASHED_NAME.fullmatch(name):
                    with suppress(*_ABSENT, UnicodeDecodeError):
                        yield Path(directory, name).read_text()
