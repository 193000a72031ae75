"""The faults of ``trio-broker sandbox``, and its log."""
