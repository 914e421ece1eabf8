"""The database: the only channel between processes."""

DEFAULT_STORAGE = "sqlite:///floodsearch.db"
"""In the current folder."""
