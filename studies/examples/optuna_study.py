"""A study of plain Optuna that floods: our sampler and pruner in the place of Optuna's, and nothing else."""

import optuna
import torch
from plain_after import accuracy, build
from torch import nn

from floodsearch import flood
from floodsearch.search import JudgePruner, RuleSampler, Space, Training, successive_halving, tpe

EPOCHS, HIGH = 30, 0.6


def objective(trial):
    """Return the validation accuracy of a model that is trained at a level."""
    level = trial.suggest_float("level", 0.0, HIGH)  # from 0, as the sampler has it
    inputs, labels, model, optimizer = build(seed=0)  # the same for all levels, which are compared
    for epoch in range(1, EPOCHS + 1):
        model.train()
        for batch in torch.randperm(200).split(50):
            loss = nn.functional.cross_entropy(model(inputs[0][batch]), labels[0][batch])
            loss = flood(loss, level)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        value = accuracy(model, inputs[1], labels[1])
        trial.report(value, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return value


def search(trials):
    """Return the finished study."""
    study = optuna.create_study(
        direction="maximize",
        sampler=RuleSampler(tpe, Space(low=0.02, high=HIGH), seed=0, maximize=True),
        pruner=JudgePruner(successive_halving(Training(epochs=EPOCHS, validate_every=1), first=0.2)),
    )
    study.enqueue_trial({"level": 0.0})  # the baseline, which is never pruned
    study.optimize(objective, n_trials=trials)
    return study


if __name__ == "__main__":
    print(search(25).best_params)
