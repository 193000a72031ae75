"""The version, which is also sent as the user agent."""

__version__ = "0.1.0"
