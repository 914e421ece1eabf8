"""Loggers of other libraries, to which the epochs of a study's runs are written as they are trained."""
