"""The site's pages: each user's account, and a redirect to the first one."""

from __future__ import annotations

import secrets
from typing import Final

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import path

from examples.django_channels.accounts import LIVE


def home(request: HttpRequest) -> HttpResponse:  # noqa: ARG001 - Django passes it
    """Redirect to the first user's page."""
    return redirect("account", user=next(iter(LIVE)))


def account(request: HttpRequest, user: str) -> HttpResponse:
    """A user's page, which may use only its own script and style, and this site."""
    if user not in LIVE:
        raise Http404
    nonce = secrets.token_urlsafe(16)
    response = render(request, "account.html", {"user": user, "users": LIVE, "nonce": nonce})
    response["Content-Security-Policy"] = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return response


urlpatterns: Final = [path("", home), path("<slug:user>/", account, name="account")]
