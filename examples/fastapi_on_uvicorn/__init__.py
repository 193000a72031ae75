"""An account at the broker as a web service on asyncio: see README.md in this directory."""
