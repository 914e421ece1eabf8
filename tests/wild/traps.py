"""The mistakes that are planted: by their name, in which scripts, and what has to be told of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tests.wild.kinds import Patch


@dataclass(frozen=True)
class Trap:
    """A mistake.

    Args:
        findings: the kinds of findings of `floodsearch check --try` of which one tells it.
        planted: by the kind of script, where it is made.
    """

    findings: frozenset[str]
    planted: Mapping[str, Patch]


QUICK = ("one_logit", "lbfgs", "neural_net", "notebook", "gan", "word_lstm", "references", "vae", "tabular")
"""The kinds that start no process and import no library of trainers, the quickest first."""
CLEAN = "(clean)"
"""In place of a trap where there is none."""
TRAPS: Mapping[str, Trap] = {
    "scheduler forgotten": Trap(
        frozenset({"pause"}),
        {
            "word_lstm": ((", scheduler=scheduler)", ")"),),
            "references": ((", scheduler=lr_scheduler)", ")"),),
            "tabular": ((", scheduler=scheduler)", ")"),),
            "notebook": ((", scheduler=scheduler)", ")"),),
        },
    ),
    "optimizer forgotten": Trap(
        frozenset({"pause"}),
        {
            "mnist": ((", optimizer=optimizer, scheduler=scheduler)", ", scheduler=scheduler)"),),
            "char_gpt": (("model=model, optimizer=optimizer)", "model=model)"),),
            "vae": (("model=model, optimizer=optimizer)", "model=model)"),),
            "lbfgs": (("seq=seq, optimizer=optimizer)", "seq=seq)"),),
            "one_logit": (("model=model, opt=opt)", "model=model)"),),
            "neural_net": ((", optimizer=net.optimizer_)", ")"),),
        },
    ),
    "model forgotten": Trap(
        frozenset({"pause"}),
        {
            "references": (("model=model, ema=model_ema, ", "model=model, "),),
            "gan": (("D=discriminator, ", ""),),
        },
    ),
    "scaler forgotten": Trap(frozenset({"pause"}), {"references": (("scaler=scaler, ", ""),)}),
    "generator forgotten": Trap(
        frozenset({"pause"}),
        {
            "notebook": (
                (
                    "    dataloaders = make_datasets()\n",
                    "    g = torch.Generator().manual_seed(run.seed)\n    dataloaders = make_datasets(g)\n",
                ),
                ("def make_datasets():", "def make_datasets(g):"),
                ("batch_size=40, shuffle=True)", "batch_size=40, shuffle=True, generator=g)"),
            ),
            "lbfgs": (
                (
                    "        def closure():\n",
                    "        noise = torch.from_numpy(rng.normal(0, 0.1, input.shape))\n\n"
                    "        def closure():\n",
                ),
                ("seq(input)", "seq(input + noise)"),
            ),
        },
    ),
    "counter of its own": Trap(
        frozenset({"pause"}),
        {
            "one_logit": (
                (
                    "    for epoch in run.epochs():\n",
                    "    best, wait = 0.0, 0\n    for epoch in run.epochs():\n",
                ),
                (
                    "        run.report(val_accuracy=acc)\n",
                    "        if acc < best + 0.3:  # hardly better: smaller steps\n"
                    "            wait += 1\n"
                    '            opt.param_groups[0]["lr"] = 3e-3 / (1 + wait)\n'
                    "        best = max(best, acc)\n"
                    "        run.report(val_accuracy=acc)\n",
                ),
            ),
            "char_gpt": (
                ("lr = get_lr(iter_num)", "lr = get_lr(step)\n    step += 1"),
                ("run.restore(", "step = 0\nrun.restore("),
            ),
            "tabular": (
                (
                    "    for epoch in run.epochs():\n",
                    "    scores = []\n    for epoch in run.epochs():\n",
                ),
                (
                    "        run.report(average_precision=ap)\n",
                    "        scores.append(ap)\n        run.report(average_precision=np.mean(scores[-3:]))\n",
                ),
            ),
        },
    ),
    "prefetched batch": Trap(
        frozenset({"pause"}),
        {
            "char_gpt": (
                ('        X, Y = get_batch("train")\n', ""),
                ("run.restore(", 'X, Y = get_batch("train")\nrun.restore('),
                (
                    "gradient_accumulation_steps).backward()\n",
                    'gradient_accumulation_steps).backward()\n        X, Y = get_batch("train")\n',
                ),
            )
        },
    ),
    "carried hidden state": Trap(
        frozenset({"pause"}),
        {
            "word_lstm": (
                ("        hidden = model.init_hidden(BATCH)\n        for i", "        for i"),
                (
                    "    for epoch in run.epochs():\n",
                    "    hidden = model.init_hidden(BATCH)\n    for epoch in run.epochs():\n",
                ),
            )
        },
    ),
    "global model": Trap(
        frozenset({"global state"}),
        {
            "vae": (
                ("def train(args", "model = VAE()\n\n\ndef train(args"),
                ("    model = VAE()\n    optimizer", "    optimizer"),
            ),
            "one_logit": (
                ("def train(run):\n", "model = SiameseNetwork()\n\n\ndef train(run):\n"),
                ("    model = SiameseNetwork()\n    opt", "    opt"),
            ),
            "lightning_mlp": (
                ("def main(run):\n", "model = LitClassifier()\n\n\ndef main(run):\n"),
                ("trainer.fit(LitClassifier(), ", "trainer.fit(model, "),
            ),
            "hf_bert": (
                (
                    "def main(run):\n    set_seed(run.seed)\n",
                    "def main(run, models=[]):\n    set_seed(run.seed)\n",
                ),
                (
                    "    training_args =",
                    "    models or models.append(BertForSequenceClassification(config))\n    training_args =",
                ),
                ("model=BertForSequenceClassification(config)", "model=models[0]"),
            ),
        },
    ),
    "global list": Trap(
        frozenset({"global state", "unseeded"}),
        {
            "gan": (
                ("def ring(n):", "history = []\n\n\ndef ring(n):"),
                (
                    "            fake_loss = adversarial_loss(discriminator(gen.detach()), fake)\n",
                    "            history.append(gen.detach())\n"
                    "            pool = torch.cat(history[-8:])  # images of the past, too\n"
                    "            fake_loss = adversarial_loss(discriminator(pool), torch.zeros(len(pool), 1))\n",  # noqa: E501
                ),
            ),
        },
    ),
    "global generator": Trap(
        frozenset({"global state"}),
        {
            "tabular": (
                ("drop_last=True)\n", "drop_last=True, generator=GENERATOR)\n"),
                (
                    "def seed_everything",
                    "GENERATOR = torch.Generator().manual_seed(0)\n\n\ndef seed_everything",
                ),
            ),
            "neural_net": (
                (
                    "class NeuralNet:\n",
                    "shuffling = torch.Generator().manual_seed(1)\n\n\nclass NeuralNet:\n",
                ),
                ("self.batch_size, shuffle=True)", "self.batch_size, shuffle=True, generator=shuffling)"),
            ),
        },
    ),
    "unseeded draws": Trap(
        frozenset({"unseeded"}),
        {
            "lbfgs": (("np.random.default_rng(seed)", "np.random.default_rng()"),),
            "mnist": (
                ("torch.Generator().manual_seed(seed))[:600]", "g)[:600]"),
                ("    order = ", "    g = torch.Generator()\n    g.seed()\n    order = "),
            ),
            "own_checkpoints": (("    torch.manual_seed(args.seed)\n", ""),),
        },
    ),
    "seed not used": Trap(
        frozenset({"seed not used"}),
        {
            "word_lstm": (("    seed = run.seed\n", "    seed = 1111\n"),),
            "one_logit": (("torch.manual_seed(run.seed)", "torch.manual_seed(0)"),),
            "references": (("run, run.seed, run.length", "run, 0, run.length"),),
            "own_checkpoints": (("torch.manual_seed(args.seed)", "torch.manual_seed(0)"),),
            "lightning_mlp": (("seed_everything(run.seed)", "seed_everything(42)"),),
        },
    ),
    "flood forgotten": Trap(
        frozenset({"level not used"}),
        {
            "mnist": (("        loss = args.run.flood(loss)\n", ""),),
            "tabular": (("run.flood(criterion(model(xb), yb))", "criterion(model(xb), yb)"),),
            "gan": (("run.flood(d_loss).backward()", "d_loss.backward()"),),
            "own_checkpoints": (("            loss = (loss - args.flood).abs() + args.flood\n", ""),),
        },
    ),
    "flooded loss dropped": Trap(
        frozenset({"level not used"}),
        {
            "references": (("loss = args.run.flood(loss)", "args.run.flood(loss)"),),
            "one_logit": (("run.flood(loss).backward()", "run.flood(loss)\n            loss.backward()"),),
        },
    ),
    "flooded by hand, too": Trap(
        frozenset({"not only flooded"}),
        {
            "word_lstm": (
                (
                    "run.flood(criterion(output, targets))\n",
                    "(criterion(output, targets) - run.level).abs() + run.level\n"
                    "            loss = run.flood(loss)\n",
                ),
            ),
        },
    ),
    "flooded per sample": Trap(
        frozenset({"fails"}),
        {
            "tabular": (
                (
                    "nn.BCEWithLogitsLoss(pos_weight=pos_weight)",
                    'nn.BCEWithLogitsLoss(pos_weight=pos_weight, reduction="none")',
                ),
                ("run.flood(criterion(model(xb), yb))", "run.flood(criterion(model(xb), yb)).mean()"),
            ),
        },
    ),
    "evaluation flooded": Trap(
        frozenset({"evaluation flooded"}),
        {
            "word_lstm": (
                ("def evaluate(model, ", "def evaluate(run, model, "),
                (
                    "len(data) * criterion(output, targets).item()",
                    "len(data) * ((criterion(output, targets) - run.level).abs() + run.level).item()",
                ),
                ("evaluate(model, ", "evaluate(run, model, "),
            ),
            "vae": (
                (
                    "            test_loss += loss_function(recon_batch, data, mu, logvar).item()\n",
                    "            loss = loss_function(recon_batch, data, mu, logvar).item()\n"
                    "            b = args.run.level\n"
                    "            test_loss += (abs(loss / len(data) - b) + b) * len(data)\n",
                ),
                ("def test(model, ", "def test(args, model, "),
                ("val_loss=test(model, ", "val_loss=test(args, model, "),
            ),
        },
    ),
    "train loss after the flood": Trap(
        frozenset({"evaluation flooded"}),
        {
            "one_logit": (
                (
                    "            run.flood(loss).backward()\n",
                    "            loss = run.flood(loss)\n            loss.backward()\n",
                ),
                ("val_accuracy=acc)", "val_accuracy=acc, train_loss=running_loss / 10)"),
            ),
        },
    ),
    "metric not reported": Trap(
        frozenset({"fails"}),
        {
            "notebook": (("        run.report(val_accuracy=epoch_acc, val_loss=epoch_loss)\n", ""),),
            "lightning_mlp": (('        self.log("val_acc", (logits.argmax(1) == y).float().mean())\n', ""),),
            "own_checkpoints": (('        print(json.dumps({"epoch": epoch, "val_accuracy": acc}))\n', ""),),
        },
    ),
    "metric under another name": Trap(
        frozenset({"fails"}),
        {
            "tabular": (("run.report(average_precision=ap)", "run.report(ap=ap)"),),
            "lightning_mlp": ((', metrics={"val_accuracy": "val_acc"}', ""),),
            "hf_bert": (('return {"accuracy"', 'return {"acc"'),),
            "own_checkpoints": (('"val_accuracy": acc', '"acc": acc'),),
        },
    ),
    "percentage": Trap(
        frozenset({"percentage"}),
        {
            "references": (("val_accuracy=acc / 100", "val_accuracy=acc"),),
            "notebook": (("val_accuracy=epoch_acc", "val_accuracy=100 * epoch_acc"),),
            "own_checkpoints": (('"val_accuracy": acc', '"val_accuracy": 100 * acc'),),
        },
    ),
    "one file of all runs": Trap(
        frozenset({"same file"}),
        {
            "mnist": (
                (
                    "        scheduler.step()\n",
                    '        scheduler.step()\n        torch.save(model.state_dict(), "mnist_cnn.pt")\n',
                ),
            ),
            "references": (
                ('"--output-dir", default=""', '"--output-dir", default="out"'),
                (', "args": args}', "}"),
            ),
        },
    ),
    "arguments of the worker": Trap(
        frozenset({"fails"}),
        {
            "mnist": (
                ("parser.parse_args([])", "parser.parse_args()"),
                (
                    '    parser.add_argument("--batch-size"',
                    '    parser.add_argument("data", metavar="DIR")\n    parser.add_argument("--batch-size"',
                ),
            ),
            "vae": (
                ("parser.parse_args([])", "parser.parse_args()"),
                (
                    'parser.add_argument("--batch-size", type=int, ',
                    'parser.add_argument("--batch-size", type=int, required=True, ',
                ),
            ),
        },
    ),
    "epochs of its own": Trap(
        frozenset({"fails"}),
        {
            "lbfgs": (("for i in run.epochs():", "for i in range(8):"),),
            "hf_bert": (("num_train_epochs=run.length", "num_train_epochs=3"),),
        },
    ),
}


def planted() -> Iterator[tuple[str, str]]:
    """Yield the name of each trap, with each kind of script in which it is made."""
    for name, trap in TRAPS.items():
        yield from ((name, kind) for kind in trap.planted)


def quickest(trap: str) -> str:
    """Return the kind of script in which a trap is planted that trains in the shortest time."""
    return min(TRAPS[trap].planted, key=lambda kind: QUICK.index(kind) if kind in QUICK else len(QUICK))
