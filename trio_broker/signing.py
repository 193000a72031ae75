"""Signatures: the canonical string, the HMAC key, the nonce.

The broker checks an HMAC-SHA256 over five lines: ``WS``, a path, the timestamp, the nonce, and the
hash of the body *exactly as it is in the message*. So the text that is signed is the text that is
sent; it is never encoded twice.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from typing import Final, Literal, TypeAlias

from trio_broker._secret import Secret, hide

SigningKey: TypeAlias = Literal["derived", "raw"]

_AUTH_PATH: Final = "/ws/v1/stream"


def canonical_string(op: str, timestamp_ms: int, nonce: str, body: str) -> str:
    """The text that is signed.

    Args:
        op: The message's ``op``.
        timestamp_ms: Milliseconds since the epoch, as in the message's ``ts``.
        nonce: The message's ``nonce``.
        body: The exact text of the message's ``data`` member, empty if it has none.

    Returns:
        Five lines, without a line break at the end. The path is ``/ws/v1/stream`` for ``auth``, and
        ``/ws/v1/<op>`` otherwise, whatever the path of the URL.
    """
    path = _AUTH_PATH if op == "auth" else f"/ws/v1/{op}"
    digest = hashlib.sha256(body.encode()).hexdigest()
    return f"WS\n{path}\n{timestamp_ms}\n{nonce}\n{digest}"


def hmac_key(secret_key: str | Secret, signing_key: SigningKey = "derived") -> bytes:
    """The HMAC key for a secret key.

    Args:
        secret_key: The secret key as the broker gave it.
        signing_key: ``"derived"`` for the base64url of its SHA-256, as in the broker's own clients;
            ``"raw"`` for the secret key itself, as in the broker's documentation.

    Returns:
        The key's bytes.
    """
    secret_key = hide(secret_key)
    if signing_key == "raw":
        return secret_key.reveal().encode()
    return base64.urlsafe_b64encode(hashlib.sha256(secret_key.reveal().encode()).digest())


def new_nonce(now: float) -> str:
    """Make a nonce that is unique among all clients and processes.

    Its 64 random bits come from the operating system, so a forked process doesn't repeat them.

    Args:
        now: Seconds since the epoch.

    Returns:
        ``{nanoseconds}_{random}``, always of the same length.
    """
    return f"{int(now * 1e9):019d}_{secrets.randbits(64):020d}"


class Signer:
    """Signs messages with one key.

    Args:
        secret_key: The secret key as the broker gave it.
        signing_key: See `hmac_key`.
    """

    __slots__ = ("_prepared",)

    def __init__(self, secret_key: str | Secret, signing_key: SigningKey = "derived") -> None:
        secret_key = hide(secret_key)  # for tracebacks with locals
        # Copying a prepared HMAC object costs a third of making one.
        self._prepared = hmac.new(hmac_key(secret_key, signing_key), digestmod=hashlib.sha256)

    def sign(self, op: str, timestamp_ms: int, nonce: str, body: str) -> str:
        """The signature of one message, in lower-case hexadecimal.

        Args:
            op: The message's ``op``.
            timestamp_ms: Milliseconds since the epoch.
            nonce: The message's nonce.
            body: The exact text of its ``data`` member, empty if it has none.
        """
        mac = self._prepared.copy()
        mac.update(canonical_string(op, timestamp_ms, nonce, body).encode())
        return mac.hexdigest()
