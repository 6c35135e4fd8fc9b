import os

import torch
from sklearn.datasets import load_digits
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import pyro_ibvi as ibvi
from pyro_ibvi.training import seed_process

has_gpus = torch.cuda.is_available()
distributed.init_process_group("nccl" if has_gpus else "gloo")
device = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if has_gpus else "cpu")

x, y = load_digits(return_X_y=True)
x, y = torch.tensor(x / 8 - 1, dtype=torch.float32), torch.tensor(y)
data = TensorDataset(x[:1200], y[:1200])
net = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 10))
bnn = ibvi.VariationalNetwork(net, ibvi.Categorical()).to(device)
bnn.set_num_data(len(data))  # of all processes together, not of one's share

loss = DistributedDataParallel(bnn.loss(bnn.model, bnn.guide))
optimizer, _ = bnn.optim.make_torch()
sampler = DistributedSampler(data)
loader = DataLoader(data, batch_size=96 // distributed.get_world_size(), sampler=sampler)
seed_process(0)  # each process draws weights of its own

for epoch in range(20):
    sampler.set_epoch(epoch)
    for batch in loader:
        optimizer.zero_grad()
        loss(*(part.to(device) for part in batch)).backward()
        optimizer.step()

if distributed.get_rank() == 0:  # all have the same network, and one writes it
    bnn.save("digits.ibvi")
    print(bnn.evaluate(x[1200:], y[1200:], seed=0))
del loss  # before the group that it uses: torch may hang at the end of a process otherwise
distributed.destroy_process_group()
