import math

import torch
import torch.nn as nn

latent_dim, batch_size, n_epochs = 8, 50, 8


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(
            nn.Linear(latent_dim, 32), nn.BatchNorm1d(32, 0.8), nn.LeakyReLU(0.2), nn.Linear(32, 2)
        )

    def forward(self, z):
        return self.model(z)


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(
            nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1), nn.Sigmoid()
        )

    def forward(self, x):
        return self.model(x)


def ring(n):
    angle = torch.randint(8, (n,)) * math.pi / 4
    return torch.stack([angle.cos(), angle.sin()], dim=1) + 0.05 * torch.randn(n, 2)


def energy_distance(x, y):
    return (2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean()).item()


def main():
    torch.manual_seed(0)
    train_points, val_points = ring(400), ring(400)
    fixed_noise = torch.randn(400, latent_dim)
    adversarial_loss = nn.BCELoss()
    generator, discriminator = Generator(), Discriminator()
    optimizer_G = torch.optim.Adam(generator.parameters(), lr=0.005, betas=(0.5, 0.999))
    optimizer_D = torch.optim.Adam(discriminator.parameters(), lr=0.005, betas=(0.5, 0.999))

    for epoch in range(n_epochs):
        for real in train_points[torch.randperm(len(train_points))].split(batch_size):
            valid, fake = torch.ones(len(real), 1), torch.zeros(len(real), 1)

            optimizer_G.zero_grad()
            gen = generator(torch.randn(len(real), latent_dim))
            g_loss = adversarial_loss(discriminator(gen), valid)
            g_loss.backward()
            optimizer_G.step()

            optimizer_D.zero_grad()
            real_loss = adversarial_loss(discriminator(real), valid)
            fake_loss = adversarial_loss(discriminator(gen.detach()), fake)
            d_loss = (real_loss + fake_loss) / 2
            d_loss.backward()
            optimizer_D.step()

        with torch.no_grad():
            distance = energy_distance(generator.eval()(fixed_noise), val_points)
        generator.train()
        print(f"[Epoch {epoch}/{n_epochs}] [D loss: {d_loss.item():f}] [G loss: {g_loss.item():f}] {distance:f}")


if __name__ == "__main__":
    main()
