import lightning as L
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class LitClassifier(L.LightningModule):
    def __init__(self, lr=1e-2):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Dropout(0.1), nn.Linear(48, 3))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x)
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_acc", (logits.argmax(1) == y).float().mean())

    def on_validation_epoch_end(self):
        metrics = self.trainer.callback_metrics
        print(f"val_loss {metrics['val_loss']:.4f} val_acc {metrics['val_acc']:.4f}")

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


class BlobsDataModule(L.LightningDataModule):
    def setup(self, stage):
        x = torch.randn(450, 12)
        y = (x[:, :4].sum(1) > 0).long() + (x[:, 4:8].sum(1) > 0).long()
        y = torch.where(torch.rand(450) < 0.15, torch.randint(3, (450,)), y)
        self.train, self.val = TensorDataset(x[:150], y[:150]), TensorDataset(x[150:], y[150:])

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=30, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=300)


def main():
    L.seed_everything(42)
    trainer = L.Trainer(
        max_epochs=8,
        accelerator="cpu",
        devices=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
    )
    trainer.fit(LitClassifier(), datamodule=BlobsDataModule())


if __name__ == "__main__":
    main()
