"""Where arguments and attributes are that a person looks for at the wrong door, by name."""

from __future__ import annotations

from collections.abc import Mapping

#: What ``VariationalNetwork(...)`` does not take itself.
OF_NETWORK: Mapping[str, str] = {
    "rank": "write covariance=LowRank(10)",
    "momentum": "it is the optimizer's, optim_args={'momentum': 0.9}",
    "weight_decay": "it is the optimizer's, optim_args={'weight_decay': 0.01}",
    "betas": "they are the optimizer's, optim_args={'betas': (0.9, 0.99)}",
    "prior": "write VariationalNetwork(RandomModule(net, prior=1.0), likelihood)",
    "kl_weight": "write loss=TraceExpectedLogLikelihood(reduction='mean', kl_weight=1.0)",
    "num_data": "fit counts them, or takes num_data=",
    "num_epochs": "it is an argument of fit",
    "valid_loader": "it is an argument of fit",
    "batch_size": "it is an argument of fit",
    "patience": "it is an argument of fit",
    "progress": "it is an argument of fit",
    "device": "write VariationalNetwork(net, likelihood).to('cuda')",
    "seed": "write torch.manual_seed(0) before the network is made; predict takes seed=",
}

#: What ``VariationalNetwork.fit`` does not take.
OF_FIT: Mapping[str, str] = {
    name: f"it is an argument of VariationalNetwork(net, likelihood, {name}=...)"
    for name in ("lr", "optimizer", "scheduler", "clip_norm", "draws", "loss", "optim_args")
} | {
    "sample_weight": "estimators take it, IBVIRegressor().fit(X, y, sample_weight=...), and "
    "Categorical(weight=...) has weights of classes",
    "shuffle": "tensors and data sets are shuffled, and a DataLoader says it itself",
    "seed": "write torch.manual_seed(0) before the network is made",
}

#: What a module or an estimator has and the network does not, with what is meant by it here.
OF_MODULES: Mapping[str, str] = {
    "parameters": "bnn.guide.parameters() and bnn.model.parameters() hold them",
    "named_parameters": "bnn.guide and bnn.model have theirs",
    "state_dict": "write bnn.save(path), or take those of bnn.guide and bnn.model",
    "load_state_dict": "write ibvi.load(path, net), or load into bnn.guide and bnn.model",
    "load": "write ibvi.load(path, net)",
    "train": "bnn.fit(...) trains, and modes are chosen by what is done",
    "eval": "bnn.predict(x) runs in evaluation mode by itself",
    "forward": "write bnn.predict(x)",
    "sample": "bnn.predict(x).outputs are the network's outputs for draws of its weights",
    "predict_proba": "bnn.predict(x).mean are the probabilities of classes",
    "score": "write bnn.evaluate(x, y)",
    "cuda": 'write bnn.to("cuda")',
    "cpu": 'write bnn.to("cpu")',
    "double": "write VariationalNetwork(net.double(), ...)",
    "step": "write bnn.svi.step(x, y)",
    "zero_grad": "bnn.svi.step(x, y) does it",
}


#: What training asks of other places than the network's attributes.
NOT_SET: Mapping[str, str] = {
    name: f"it is an argument of VariationalNetwork(net, likelihood, {name}=...)"
    for name in (
        *("lr", "optimizer", "scheduler", "clip_norm", "draws", "optim_args"),
        *("covariance", "init_scale", "stochastic", "num_components"),
    )
} | {
    "num_data": "write bnn.set_num_data(...)",
    "num_epochs": "it is an argument of fit",
    "batch_size": "it is an argument of fit",
    "patience": "it is an argument of fit",
}


def check_set(name: str) -> None:
    """Refuses to set an attribute that nothing would ask for.

    Args:
        name: Its name.

    Raises:
        AttributeError: If it is an argument of the network or of its training.
    """
    if name in NOT_SET:
        raise AttributeError(
            f"Setting {name!r} of a VariationalNetwork would change nothing: {NOT_SET[name]}."
        )


def what_is_meant(name: str) -> str:
    """What an attribute that the network does not have is here.

    Args:
        name: Its name.

    Returns:
        The end of a sentence, empty if nothing is known of that name.
    """
    return f": {OF_MODULES[name]}" if name in OF_MODULES else ""
