"""A Trio-native client for TheOne Trading API."""

__version__ = "0.1.0"
