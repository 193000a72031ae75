"""Signatures: the canonical string, the HMAC key, the nonce.

The broker checks HMAC-SHA256 over five lines: ``WS``, a path, the timestamp, the nonce, and the
hash of the body *as it stands in the message*. So whoever signs here passes the very text that
goes out, and nothing prints it a second time.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from typing import Final, Literal, TypeAlias

SigningKey: TypeAlias = Literal["derived", "raw"]

AUTH_PATH: Final = "/ws/v1/stream"
_OPERATION_PATH: Final = "/ws/v1/"


def signing_path(op: str) -> str:
    """The path that a message is signed with, whatever the path of the URL.

    Args:
        op: The message's ``op``.

    Returns:
        ``/ws/v1/stream`` for ``auth``, otherwise ``/ws/v1/<op>``.
    """
    return AUTH_PATH if op == "auth" else _OPERATION_PATH + op


def canonical_string(op: str, timestamp_ms: int, nonce: str, body: str) -> str:
    """The text that is signed.

    Args:
        op: The message's ``op``.
        timestamp_ms: Milliseconds since the epoch, as in the message's ``ts``.
        nonce: The message's ``nonce``.
        body: The exact text of the message's ``data`` member, empty where it has none.

    Returns:
        Five lines, without a line break at the end.
    """
    digest = hashlib.sha256(body.encode()).hexdigest()
    return f"WS\n{signing_path(op)}\n{timestamp_ms}\n{nonce}\n{digest}"


def hmac_key(secret_key: str, signing_key: SigningKey = "derived") -> bytes:
    """The HMAC key that belongs to a secret key.

    Args:
        secret_key: The secret key as the broker gave it.
        signing_key: ``"derived"``: base64url of its SHA-256, as the broker's own clients do;
            ``"raw"``: the secret itself, as the broker's documentation shows.

    Returns:
        The key's bytes.
    """
    if signing_key == "raw":
        return secret_key.encode()
    return base64.urlsafe_b64encode(hashlib.sha256(secret_key.encode()).digest())


def new_nonce(now: float) -> str:
    """A nonce that no message had before, in any client or process.

    Its 64 random bits come from the operating system, so a fork doesn't repeat them.

    Args:
        now: Seconds since the epoch.

    Returns:
        ``{nanoseconds}_{random}``, always of the same length.
    """
    return f"{int(now * 1e9):019d}_{secrets.randbits(64):020d}"


class Signer:
    """Signs messages with one key, which is prepared once.

    Args:
        secret_key: The secret key as the broker gave it.
        signing_key: See `hmac_key`.
    """

    __slots__ = ("_prepared",)

    def __init__(self, secret_key: str, signing_key: SigningKey = "derived") -> None:
        # Copying a prepared HMAC object costs a third of making one.
        self._prepared = hmac.new(hmac_key(secret_key, signing_key), digestmod=hashlib.sha256)

    def sign(self, op: str, timestamp_ms: int, nonce: str, body: str) -> str:
        """The signature of one message, in lower-case hexadecimal.

        Args:
            op: The message's ``op``.
            timestamp_ms: Milliseconds since the epoch.
            nonce: The message's nonce.
            body: The exact text of its ``data`` member, empty where it has none.
        """
        mac = self._prepared.copy()
        mac.update(canonical_string(op, timestamp_ms, nonce, body).encode())
        return mac.hexdigest()
