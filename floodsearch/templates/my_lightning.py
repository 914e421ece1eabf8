"""A Lightning module that floodsearch searches: put yours, and your data, in the place of these."""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from floodsearch.adapters.lightning import FloodCallback


class Classifier(LightningModule):
    """A module as it is; nothing in it knows of flooding."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 2))

    def training_step(self, batch, batch_idx):
        """Return the mean loss of a batch: it is flooded."""
        inputs, labels = batch
        return nn.functional.cross_entropy(self.layers(inputs), labels)

    def validation_step(self, batch, batch_idx):
        """Log what is reported of an epoch: val_accuracy and val_loss."""
        inputs, labels = batch
        outputs = self.layers(inputs)
        self.log("val_loss", nn.functional.cross_entropy(outputs, labels))
        self.log("val_accuracy", (outputs.argmax(dim=1) == labels).float().mean())

    def configure_optimizers(self):
        """Return the optimizer."""
        return torch.optim.Adam(self.parameters(), lr=0.01)


def build(seed):
    """Return the module, training and validation data of a seed: make here all that a run changes."""
    torch.manual_seed(seed)
    inputs = torch.randn(400, 10)
    labels = (inputs.sum(dim=1) > 0).long()
    labels = torch.where(torch.rand(400) < 0.15, 1 - labels, labels)  # wrong ones
    training, validation = (
        TensorDataset(inputs[part], labels[part]) for part in (slice(200), slice(200, None))
    )
    return Classifier(), DataLoader(training, batch_size=50, shuffle=True), DataLoader(validation, 200)


def train(run):
    """Train one run: run.level, run.seed, run.device and run.settings say which."""
    module, training, validation = build(run.seed)
    trainer = Trainer(
        max_epochs=run.length,
        callbacks=[FloodCallback(run)],
        accelerator=run.device.type,
        devices=1 if run.device.type == "cpu" else [run.device.index],
        logger=False,
        enable_checkpointing=False,  # floodsearch keeps its own
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, training, validation)
