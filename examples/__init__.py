"""Programs that use the library, each to be run and read."""
