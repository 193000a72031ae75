"""Django's settings: no database, no sessions, no passwords."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any, Final

# Nothing is signed with it yet. Sessions would need a key that survives a restart.
SECRET_KEY: Final = os.environ.get("DJANGO_SECRET_KEY") or secrets.token_urlsafe(50)
# It also keeps out other sites' pages, including their WebSockets: see asgi.py.
ALLOWED_HOSTS: Final = ["127.0.0.1", "localhost", "[::1]"]
ROOT_URLCONF: Final = "examples.django_channels.urls"
MIDDLEWARE: Final = [
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.common.CommonMiddleware",
]
TEMPLATES: Final[list[dict[str, Any]]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [Path(__file__).parent / "templates"],
    }
]
DATABASES: Final[dict[str, Any]] = {}
USE_TZ: Final = True
TIME_ZONE: Final = "UTC"

# The site's users, and the suffixes of BROKER_API_KEY and BROKER_SECRET_KEY in the names of the
# variables that have their keys. In the sandbox they are its two accounts.
BROKER_USERS: Final = {"alice": "", "bob": "_2"}
