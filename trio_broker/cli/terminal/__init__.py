"""The terminal: output, prompts, progress and signals."""
