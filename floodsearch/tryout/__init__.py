"""A try of a study's code before its search: a few short runs, and what they show to be wrong."""
