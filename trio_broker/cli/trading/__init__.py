"""Code that the commands for swaps and orders share: journals, orders and swap results."""
