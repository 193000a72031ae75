"""The clients that are measured: one file a library, each run in a process of its own.

This library's own must not import those of the others, nor theirs this one.
"""
