"""The commands: each module has one, in the function ``command``."""
