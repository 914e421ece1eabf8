import argparse
import os
import time

import torch
import torch.utils.data
from torch import nn


class ExponentialMovingAverage(torch.optim.swa_utils.AveragedModel):
    """Maintains moving averages of model parameters using an exponential decay."""

    def __init__(self, model, decay, device="cpu"):
        def ema_avg(avg_model_param, model_param, num_averaged):
            return decay * avg_model_param + (1 - decay) * model_param

        super().__init__(model, device, ema_avg, use_buffers=True)


def load_data(args):
    g = torch.Generator().manual_seed(args.seed)
    x = torch.randn(800, 3, 4, 4, generator=g)
    y = (x.mean(dim=(1, 2, 3)) > 0).long() + 2 * (x[:, 0].mean(dim=(1, 2)) > 0).long()
    y = torch.where(torch.rand(800, generator=g) < 0.1, torch.randint(4, (800,), generator=g), y)
    dataset = torch.utils.data.TensorDataset(x[:400], y[:400])
    dataset_test = torch.utils.data.TensorDataset(x[400:], y[400:])
    return dataset, dataset_test


def train_one_epoch(model, criterion, optimizer, data_loader, device, epoch, args, model_ema=None, scaler=None):
    model.train()
    for i, (image, target) in enumerate(data_loader):
        image, target = image.to(device), target.to(device)
        with torch.amp.autocast("cpu", dtype=torch.float16, enabled=scaler is not None):
            output = model(image)
            loss = criterion(output, target)
        optimizer.zero_grad()
        if scaler is not None:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        else:
            loss.backward()
            optimizer.step()
        if model_ema and i % args.model_ema_steps == 0:
            model_ema.update_parameters(model)
            if epoch < args.lr_warmup_epochs:
                # Reset ema buffer to keep copying weights during warmup period
                model_ema.n_averaged.fill_(0)


def evaluate(model, criterion, data_loader, device, log_suffix=""):
    model.eval()
    correct, total, loss = 0, 0, 0.0
    with torch.inference_mode():
        for image, target in data_loader:
            output = model(image.to(device))
            loss += criterion(output, target.to(device)).item() * len(image)
            correct += (output.argmax(1) == target).sum().item()
            total += len(image)
    print(f"Test: {log_suffix} Acc@1 {100 * correct / total:.3f} Loss {loss / total:.3f}")
    return 100 * correct / total


def main(args):
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    dataset, dataset_test = load_data(args)
    data_loader = torch.utils.data.DataLoader(dataset, args.batch_size, shuffle=True, drop_last=True)
    data_loader_test = torch.utils.data.DataLoader(dataset_test, args.batch_size)

    print("Creating model")
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)
    ).to(device)
    criterion = nn.CrossEntropyLoss(label_smoothing=args.label_smoothing)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22, growth_interval=20) if args.amp else None
    main_lr_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs - args.lr_warmup_epochs)
    warmup_lr_scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=args.lr_warmup_epochs)
    lr_scheduler = torch.optim.lr_scheduler.SequentialLR(
        optimizer, schedulers=[warmup_lr_scheduler, main_lr_scheduler], milestones=[args.lr_warmup_epochs]
    )
    model_ema = ExponentialMovingAverage(model, decay=1.0 - args.model_ema_steps / 10)

    print("Start training")
    start_time = time.time()
    for epoch in range(args.start_epoch, args.epochs):
        train_one_epoch(model, criterion, optimizer, data_loader, device, epoch, args, model_ema, scaler)
        lr_scheduler.step()
        evaluate(model, criterion, data_loader_test, device)
        acc = evaluate(model_ema, criterion, data_loader_test, device, log_suffix="EMA")
        if args.output_dir:
            os.makedirs(args.output_dir, exist_ok=True)
            checkpoint = {"model": model.state_dict(), "epoch": epoch, "args": args}
            torch.save(checkpoint, os.path.join(args.output_dir, f"model_{epoch}.pth"))
    print(f"Training time {time.time() - start_time:.0f}")


def get_args_parser(add_help=True):
    parser = argparse.ArgumentParser(description="PyTorch Classification Training", add_help=add_help)
    parser.add_argument("--device", default="cpu", type=str)
    parser.add_argument("-b", "--batch-size", default=32, type=int)
    parser.add_argument("--epochs", default=8, type=int, metavar="N")
    parser.add_argument("--lr", default=0.1, type=float)
    parser.add_argument("--momentum", default=0.9, type=float)
    parser.add_argument("--wd", "--weight-decay", default=1e-4, type=float, dest="weight_decay")
    parser.add_argument("--label-smoothing", default=0.0, type=float)
    parser.add_argument("--lr-warmup-epochs", default=2, type=int)
    parser.add_argument("--output-dir", default="", type=str)
    parser.add_argument("--start-epoch", default=0, type=int)
    parser.add_argument("--model-ema-steps", type=int, default=4)
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--amp", action=argparse.BooleanOptionalAction, default=True)
    return parser


if __name__ == "__main__":
    args = get_args_parser().parse_args()
    main(args)
