"""The engine: from a task, a seed and a level to epoch records."""
