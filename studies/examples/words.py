"""Short texts, with a criterion that sums over the batch: its mean is what is flooded."""

import torch
from torch import nn

WORDS, LENGTH = 200, 12


def build(seed):
    """Return texts, as numbers of words, and labels of three splits, model and optimizer of a seed."""
    generator = torch.Generator().manual_seed(seed)
    texts = torch.randint(WORDS, (240, LENGTH), generator=generator)
    labels = (torch.randn(WORDS, generator=generator)[texts].sum(dim=1) > 0).long()
    labels = torch.where(torch.rand(240, generator=generator) < 0.15, 1 - labels, labels)  # wrong ones
    model = nn.Sequential(nn.EmbeddingBag(WORDS, 16), nn.ReLU(), nn.Linear(16, 2))
    return texts.split(80), labels.split(80), model, torch.optim.Adam(model.parameters(), lr=0.01)


def train(run):
    """Train a model."""
    texts, labels, model, optimizer = build(run.seed)
    criterion = nn.CrossEntropyLoss(reduction="sum")
    run.restore(model=model, optimizer=optimizer)
    for _ in run.epochs():
        for batch in torch.randperm(80).split(20):
            total = criterion(model(texts[0][batch]), labels[0][batch])
            loss = run.flood(total / len(batch)) * len(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            right = [model(texts[part]).argmax(dim=1) == labels[part] for part in (1, 2)]
        run.report(val_accuracy=right[0].float().mean(), test_accuracy=right[1].float().mean())
