"""The command line."""

from floodsearch.cli.run import app, main

__all__ = ["app", "main"]
