"""Tools for working on the library; they are not part of the package."""
