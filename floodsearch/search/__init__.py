"""What to try next and what to stop: pure rules, and thin adapters to Optuna."""
