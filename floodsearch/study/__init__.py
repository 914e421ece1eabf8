"""What was asked: the study file, the spec that it becomes, and the code that may run for it."""
