"""The files of a study: checkpoints, kept weights, logs."""
