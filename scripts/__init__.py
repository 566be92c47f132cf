"""Command lines: `vqrae COMMAND`, or `python -m vqrae.scripts.COMMAND`."""
