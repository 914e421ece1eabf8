"""Answers and data in the forms that people and programs read."""
