"""Accounts at the broker, live in the browser: see README.md in this directory."""
