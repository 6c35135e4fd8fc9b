import gzip
import os
import sys

import numpy as np
import torch
from torch import nn

import pyro_ibvi as ibvi


def read(name, start):
    folder = os.path.join(os.environ.get("PYRO_IBVI_DATA", "data"), "fashion-mnist")
    return np.frombuffer(gzip.open(f"{folder}/{name}").read(), np.uint8, offset=start)


x = read("train-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28) / np.float32(255)
y = read("train-labels-idx1-ubyte.gz", 8)
torch.manual_seed(0)
net = nn.Sequential(
    *(nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5), nn.ReLU()),
    *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 10)),
)
if "load" in sys.argv:
    bnn = ibvi.load("fashion.ibvi", net)
else:
    bnn = ibvi.VariationalNetwork(net, ibvi.Categorical())
    train, valid = (x[:50_000], y[:50_000]), (x[50_000:], y[50_000:])
    bnn.fit(*train, valid_loader=valid, num_epochs=20, patience=3)
    bnn.save("fashion.ibvi")
x_test = read("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28) / np.float32(255)
print(bnn.evaluate(x_test, read("t10k-labels-idx1-ubyte.gz", 8), num_samples=16, seed=0))
print(bnn.predict(x_test[:100], seed=0).mean.flatten().tolist())
