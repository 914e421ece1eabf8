"""One of our processes: its streams, its signals, and what it was started by."""
