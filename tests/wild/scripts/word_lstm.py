import math
import time

import torch
import torch.nn as nn

BATCH, BPTT, NTOKEN, CLIP = 8, 10, 12, 0.25


class Corpus:
    """Sentences of a random grammar: the next word depends on the last two."""

    def __init__(self, seed):
        g = torch.Generator().manual_seed(seed)
        self.rules = torch.randint(NTOKEN, (NTOKEN, NTOKEN), generator=g)
        self.train, self.valid = self.tokens(800, g), self.tokens(1600, g)

    def tokens(self, n, g):
        words = [0, 1]
        noise = torch.rand(n, generator=g) < 0.3
        other = torch.randint(NTOKEN, (n,), generator=g)
        for i in range(n):
            words.append(int(other[i] if noise[i] else self.rules[words[-2], words[-1]]))
        return torch.tensor(words)


def batchify(data, bsz):
    nbatch = data.size(0) // bsz
    return data.narrow(0, 0, nbatch * bsz).view(bsz, -1).t().contiguous()


class RNNModel(nn.Module):
    def __init__(self, ntoken, ninp=16, nhid=32, dropout=0.2):
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(ntoken, ninp)
        self.rnn = nn.LSTM(ninp, nhid)
        self.decoder = nn.Linear(nhid, ntoken)
        self.nhid = nhid

    def forward(self, input, hidden):
        output, hidden = self.rnn(self.drop(self.encoder(input)), hidden)
        return self.decoder(self.drop(output)).view(-1, NTOKEN), hidden

    def init_hidden(self, bsz):
        return torch.zeros(1, bsz, self.nhid), torch.zeros(1, bsz, self.nhid)


def repackage_hidden(h):
    """Wraps hidden states in new Tensors, to detach them from their history."""
    return h.detach() if isinstance(h, torch.Tensor) else tuple(repackage_hidden(v) for v in h)


def get_batch(source, i):
    seq_len = min(BPTT, len(source) - 1 - i)
    return source[i : i + seq_len], source[i + 1 : i + 1 + seq_len].view(-1)


def evaluate(model, criterion, data_source):
    model.eval()
    total_loss = 0.0
    hidden = model.init_hidden(BATCH)
    with torch.no_grad():
        for i in range(0, data_source.size(0) - 1, BPTT):
            data, targets = get_batch(data_source, i)
            output, hidden = model(data, hidden)
            total_loss += len(data) * criterion(output, targets).item()
    return total_loss / (len(data_source) - 1)


def main(run):
    seed = run.seed
    torch.manual_seed(seed)
    corpus = Corpus(seed)
    train_data, val_data = batchify(corpus.train, BATCH), batchify(corpus.valid, BATCH)
    model = RNNModel(NTOKEN)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=4.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.25, patience=0, threshold=0.05)
    run.restore(model=model, optimizer=optimizer, scheduler=scheduler)
    for epoch in run.epochs():
        epoch_start_time = time.time()
        model.train()
        hidden = model.init_hidden(BATCH)
        for i in range(0, train_data.size(0) - 1, BPTT):
            data, targets = get_batch(train_data, i)
            hidden = repackage_hidden(hidden)
            output, hidden = model(data, hidden)
            loss = run.flood(criterion(output, targets))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
        val_loss = evaluate(model, criterion, val_data)
        scheduler.step(val_loss)
        print("| end of epoch {:3d} | time: {:5.2f}s | valid loss {:5.2f} | valid ppl {:8.2f}".format(
            epoch, time.time() - epoch_start_time, val_loss, math.exp(val_loss)))
        run.report(val_loss=val_loss)


if __name__ == "__main__":
    main()
