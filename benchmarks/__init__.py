"""What the library costs, and how it fares: see README.md in this directory."""
