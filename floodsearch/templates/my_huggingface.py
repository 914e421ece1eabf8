"""A transformer that floodsearch searches: put your model and your data in the place of these."""

import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

from floodsearch.adapters.huggingface import FloodTrainer


def build(seed):
    """Return the model, training and validation data of a seed: make here all that a run changes."""
    torch.manual_seed(seed)
    tokens = torch.randint(0, 20, (160, 8))
    labels = (tokens[:, 0] < 10).long()
    labels = torch.where(torch.rand(160) < 0.15, 1 - labels, labels)  # wrong ones
    rows = [{"input_ids": x, "labels": y} for x, y in zip(tokens, labels, strict=True)]
    config = BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
    )
    return BertForSequenceClassification(config), rows[:80], rows[80:]


def accuracy(evaluated):
    """Return what is reported of an epoch, beside the loss."""
    return {"accuracy": (evaluated.predictions.argmax(axis=1) == evaluated.label_ids).mean().item()}


def train(run):
    """Train one run: run.level, run.seed, run.device and run.settings say which."""
    model, training, validation = build(run.seed)
    args = TrainingArguments(
        num_train_epochs=run.length,
        seed=run.seed,
        eval_strategy="epoch",
        learning_rate=0.01,
        per_device_train_batch_size=20,
        per_device_eval_batch_size=80,
        use_cpu=run.device.type == "cpu",
        save_strategy="no",  # floodsearch keeps its own
        report_to="none",
        disable_tqdm=True,
    )
    FloodTrainer(
        run,
        model=model,
        args=args,
        train_dataset=training,
        eval_dataset=validation,
        compute_metrics=accuracy,
    ).train()
