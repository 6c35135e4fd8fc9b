"""Names of contenders and families, as the results have them."""

DETERMINISTIC = "deterministic"
BY_HAND = "by hand"
OURS_SVI = "pyro_ibvi, SVI"
OURS_TORCH = "pyro_ibvi, torch"
PYRO = "Pyro"
INFERNO = "inferno"
BAYESIAN_TORCH = "bayesian-torch"
TORCH_UNCERTAINTY = "torch-uncertainty"

MEAN_FIELD = "mean-field"
RANKS = (10, 100)


def family_name(rank: int | None) -> str:
    """Name of the contenders with random weights of that rank, where None is mean-field."""
    return MEAN_FIELD if rank is None else f"rank {rank}"
