"""The regulariser: how a loss is flooded, and at which level when."""
