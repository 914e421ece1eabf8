"""The database: the only channel between processes."""
