import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

from floodsearch.adapters.huggingface import FloodTrainer


class ReviewDataset(torch.utils.data.Dataset):
    def __init__(self, encodings, labels):
        self.encodings, self.labels = encodings, labels

    def __getitem__(self, idx):
        return {"input_ids": self.encodings[idx], "labels": self.labels[idx]}

    def __len__(self):
        return len(self.labels)


def load_dataset():
    tokens = torch.randint(0, 30, (240, 8))
    labels = (tokens[:, 0] < 15).long()
    labels = torch.where(torch.rand(240) < 0.15, 1 - labels, labels)
    return ReviewDataset(tokens[:80], labels[:80]), ReviewDataset(tokens[80:], labels[80:])


def compute_metrics(eval_pred):
    logits, labels = eval_pred
    return {"accuracy": (np.argmax(logits, axis=-1) == labels).mean()}


def main(run):
    set_seed(run.seed)
    train_dataset, eval_dataset = load_dataset()
    config = BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
    )
    training_args = TrainingArguments(
        num_train_epochs=run.length,
        seed=run.seed,
        eval_strategy="epoch",
        learning_rate=1e-2,
        per_device_train_batch_size=20,
        per_device_eval_batch_size=160,
        lr_scheduler_type="cosine",
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = FloodTrainer(run,
        model=BertForSequenceClassification(config),
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        compute_metrics=compute_metrics,
    )
    trainer.train()


if __name__ == "__main__":
    main()
