"""Networks whose data do not lie in the first dimension of their input."""

from torch import nn


class Graphs(nn.Module):
    """A number for each of several graphs, whose nodes lie one after the other."""

    def __init__(self):
        super().__init__()
        self.a, self.o = nn.Linear(3, 8), nn.Linear(8, 1)

    def forward(self, nodes, owner):
        h = self.a(nodes).tanh()
        return self.o(h.new_zeros(int(owner.max()) + 1, 8).index_add(0, owner, h))


class TimeFirst(nn.Module):
    """A recurrent network whose batches have their steps in front."""

    def __init__(self):
        super().__init__()
        self.a, self.o = nn.GRU(3, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.o(self.a(x)[0][-1])


class Bags(nn.Module):
    """A number for each of several bags of words, which lie one after the other."""

    def __init__(self):
        super().__init__()
        self.a, self.o = nn.EmbeddingBag(30, 8), nn.Linear(8, 1)

    def forward(self, words, offsets):
        return self.o(self.a(words, offsets))


class Packed(nn.Module):
    """A recurrent network of packed sequences."""

    def __init__(self):
        super().__init__()
        self.a, self.o = nn.GRU(3, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.o(self.a(x)[1][-1])
