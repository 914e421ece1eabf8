"""From records to the answer: pure functions of what was trained."""
