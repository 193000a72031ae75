"""The tasks of ``trio-broker watch``, their state, and the views that show it."""
