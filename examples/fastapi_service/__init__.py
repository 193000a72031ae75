"""An account at the broker as a web service, with a live page: see README.md in this directory."""
