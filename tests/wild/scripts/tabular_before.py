import random

import numpy as np
import torch
from sklearn.datasets import make_classification
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CFG = dict(seed=42, epochs=8, batch_size=64, lr=5e-3, hidden=32)


def seed_everything(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def get_data(seed):
    X, y = make_classification(
        1200, 16, n_informative=6, weights=[0.9], flip_y=0.03, class_sep=0.8, random_state=seed
    )
    X_tr, X_va, y_tr, y_va = train_test_split(X, y, test_size=0.6, stratify=y, random_state=seed)
    scaler = StandardScaler().fit(X_tr)
    to = lambda a: torch.tensor(a, dtype=torch.float32)
    return to(scaler.transform(X_tr)), to(y_tr), to(scaler.transform(X_va)), y_va


class Model(nn.Module):
    def __init__(self, n, hidden):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(n, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.1), nn.Linear(hidden, 1)
        )

    def forward(self, x):
        return self.net(x).squeeze(1)  # one logit


def run_fold(cfg):
    seed_everything(cfg["seed"])
    X_tr, y_tr, X_va, y_va = get_data(cfg["seed"])
    loader = DataLoader(TensorDataset(X_tr, y_tr), batch_size=cfg["batch_size"], shuffle=True, drop_last=True)
    model = Model(X_tr.shape[1], cfg["hidden"])
    pos_weight = (len(y_tr) - y_tr.sum()) / y_tr.sum()
    criterion = nn.BCEWithLogitsLoss(pos_weight=pos_weight)
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg["lr"])
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=2e-2, epochs=cfg["epochs"], steps_per_epoch=len(loader)
    )
    for epoch in range(1, cfg["epochs"] + 1):
        model.train()
        for xb, yb in loader:
            loss = criterion(model(xb), yb)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        model.eval()
        with torch.no_grad():
            p = model(X_va).sigmoid().numpy()
        ap, auc = average_precision_score(y_va, p), roc_auc_score(y_va, p)
        print(f"epoch {epoch}: AP {ap:.4f} AUC {auc:.4f}")


if __name__ == "__main__":
    run_fold(CFG)
