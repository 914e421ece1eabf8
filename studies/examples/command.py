"""A script as it may be found, here in plain Python: it floods by itself and prints a JSON line an epoch."""

import argparse
import json
import math
import random

parser = argparse.ArgumentParser()
parser.add_argument("--flood", type=float, default=0.0)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--rate", type=float, default=0.5)
asked = parser.parse_args()
draw = random.Random(asked.seed)


def sample():
    """Return features and a label, one in six of them wrong."""
    features = [draw.gauss(0, 1) for _ in range(20)]
    return features, (features[0] + features[1] > 0) != (draw.random() < 1 / 6)


def probability(features):
    """Return how likely the label is true."""
    return 1 / (1 + math.exp(-sum(weight * x for weight, x in zip(weights, features, strict=True))))


training, validation = [[sample() for _ in range(40)] for _ in range(2)]
weights = [0.0] * 20
for epoch in range(1, asked.epochs + 1):
    guesses = [(probability(features), features, label) for features, label in training]
    loss = -sum(math.log(max(1e-9, p if label else 1 - p)) for p, _, label in guesses) / len(guesses)
    sign = 1 if loss > asked.flood else -1
    for p, features, label in guesses:
        for index, x in enumerate(features):
            weights[index] -= sign * asked.rate * (p - label) * x / len(guesses)
    right = sum((probability(features) > 0.5) == label for features, label in validation)
    print(json.dumps({"epoch": epoch, "train_loss": loss, "val_accuracy": right / len(validation)}))
