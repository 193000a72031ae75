"""The story of ``trio-broker demo``, and its output as lines, JSON or a live screen."""
