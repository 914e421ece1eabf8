import argparse
import json
import os

import torch
from torch import nn


def get_parser():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--flood", type=float, default=0.0)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--ckpt", default="checkpoint.pt")
    return parser


def main():
    args = get_parser().parse_args()
    torch.manual_seed(args.seed)
    x = torch.randn(700, 10)
    y = ((x[:, :5].sum(1) > 0) ^ (torch.rand(700) < 0.12)).long()
    x_train, y_train, x_val, y_val = x[:200], y[:200], x[200:], y[200:]
    model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    start_epoch = 1
    if os.path.exists(args.ckpt):
        state = torch.load(args.ckpt)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        start_epoch = state["epoch"] + 1
        print(f"=> resumed from {args.ckpt} (epoch {state['epoch']})")
    for epoch in range(start_epoch, args.epochs + 1):
        for batch in torch.randperm(200).split(40):
            loss = nn.functional.cross_entropy(model(x_train[batch]), y_train[batch])
            loss = (loss - args.flood).abs() + args.flood
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            acc = (model(x_val).argmax(1) == y_val).float().mean().item()
        print(f"epoch {epoch}: acc {acc:.4f}")
        print(json.dumps({"epoch": epoch, "val_accuracy": acc}))
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        torch.save({**state, "rng": torch.get_rng_state()}, args.ckpt + ".new")
        os.replace(args.ckpt + ".new", args.ckpt)


if __name__ == "__main__":
    main()
