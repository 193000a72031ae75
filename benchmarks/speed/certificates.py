"""The CA of one run, and the certificate of its server."""

from __future__ import annotations

import shutil
import ssl
import tempfile
import weakref
from pathlib import Path

import trustme


class Certificates:
    """Files with certificates, made for this run and removed at its end.

    The CA is in one file with those of the system, because reading all of them is a part of what
    TLS costs. Clients find the file through the environment, so every library uses its default.

    Attributes:
        server: The file with the server's certificate and its key.
        environment: The variables for a client's process.
    """

    def __init__(self) -> None:
        folder = Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, folder)
        authority = trustme.CA()
        self.server = folder / "server.pem"
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(self.server)
        trusted = folder / "trusted.pem"
        system = ssl.get_default_verify_paths().cafile
        trusted.write_bytes(Path(system).read_bytes() if system else b"")
        authority.cert_pem.write_to_path(trusted, append=True)
        self.environment = {"SSL_CERT_FILE": str(trusted)}
