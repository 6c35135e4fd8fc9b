import sys
from pathlib import Path

import pandas as pd
import sklearn
import torch
from torch import nn

import pyro_ibvi as ibvi

folder = Path(sklearn.__file__).parent / "datasets" / "data"
x = pd.read_csv(folder / "diabetes_data_raw.csv.gz", sep=" ", header=None)
y = pd.read_csv(folder / "diabetes_target.csv.gz", header=None)
x, y = (x - x[:350].mean()) / x[:350].std(), (y - y[:350].mean()) / y[:350].std()

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(10, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
if "load" in sys.argv:
    bnn = ibvi.load("diabetes.ibvi", net)
else:
    bnn = ibvi.VariationalNetwork(net, ibvi.Normal(0.7, learn_scale=True))
    bnn.fit(x[:300], y[:300], valid_loader=(x[300:350], y[300:350]), num_epochs=100, patience=10)
    bnn.save("diabetes.ibvi")
print(bnn.evaluate(x[350:], y[350:], seed=0))
print(bnn.predict(x[350:], seed=0).stddev.flatten().tolist())
