"""Links from the reference to the pages of other projects, without asking the network for them.

Sphinx's own way reads an inventory of each project when the pages are built. A build must work
without the internet, and what docstrings name is little: it stands here.
"""

from docutils import nodes

TORCH = "https://docs.pytorch.org/docs/stable"
PYRO = "https://docs.pyro.ai/en/stable"
NUMPY = "https://numpy.org/doc/stable/reference"
ARVIZ = "https://python.arviz.org/en/stable"
XARRAY = "https://docs.xarray.dev/en/stable/generated"

#: Pages that hold several names.
PAGES = {
    f"{TORCH}/tensors.html": ("torch.Tensor",),
    f"{TORCH}/tensor_attributes.html": ("torch.device", "torch.dtype"),
    f"{TORCH}/size.html": ("torch.Size",),
    f"{TORCH}/data.html": ("torch.utils.data.DataLoader",),
    f"{TORCH}/optim.html": ("torch.optim.Optimizer",),
    f"{TORCH}/distributions.html": ("torch.distributions.constraints.Constraint",),
    f"{PYRO}/nn.html": ("pyro.nn.module.PyroModule",),
    f"{PYRO}/optimization.html": ("pyro.optim.optim.PyroOptim",),
    f"{PYRO}/distributions.html": ("pyro.distributions.torch_distribution.TorchDistribution",),
    f"{PYRO}/inference_algos.html": (
        "pyro.infer.svi.SVI",
        "pyro.infer.elbo.ELBO",
        "pyro.infer.trace_elbo.Trace_ELBO",
        "pyro.infer.tracegraph_elbo.TraceGraph_ELBO",
        "pyro.infer.traceenum_elbo.TraceEnum_ELBO",
        "pyro.infer.trace_mean_field_elbo.TraceMeanField_ELBO",
        "pyro.infer.predictive.Predictive",
        "pyro.infer.discrete.infer_discrete",
    ),
    f"{ARVIZ}/api/inference_data.html": ("arviz.InferenceData",),
}
#: Anchors that are not the name.
ANCHORS = {
    "pyro.infer.autoguide.AutoNormal": f"{PYRO}/infer.autoguide.html#autonormal",
    "pyro.infer.autoguide.AutoGuide": f"{PYRO}/infer.autoguide.html#autoguide",
}
#: Names that signatures and docstrings write otherwise than the pages do.
ALIASES = {
    "torch._C.Generator": "torch.Generator",
    "torch.nn.modules.module.Module": "torch.nn.Module",
    "torch.optim.optimizer.Optimizer": "torch.optim.Optimizer",
    "torch.utils.data.dataloader.DataLoader": "torch.utils.data.DataLoader",
    "pyro.infer.SVI": "pyro.infer.svi.SVI",
    "pyro.infer.Trace_ELBO": "pyro.infer.trace_elbo.Trace_ELBO",
    "pyro.infer.Predictive": "pyro.infer.predictive.Predictive",
    "pyro.infer.infer_discrete": "pyro.infer.discrete.infer_discrete",
    "pyro.infer.elbo.ELBOModule": "pyro.infer.elbo.ELBO",
    "pyro.infer.autoguide.guides.AutoGuide": "pyro.infer.autoguide.AutoGuide",
    "pyro.optim.PyroOptim": "pyro.optim.optim.PyroOptim",
    "pyro.nn.PyroModule": "pyro.nn.module.PyroModule",
}
#: Projects with one page for each name.
RULES = (
    ("torch.", f"{TORCH}/generated/{{name}}.html#{{name}}"),
    ("numpy.", f"{NUMPY}/generated/{{name}}.html"),
    ("xarray.", f"{XARRAY}/{{name}}.html"),
)


def address(name: str) -> str | None:
    """Address of the page on which another project documents a name."""
    name = ALIASES.get(name, name)
    if name in ANCHORS:
        return ANCHORS[name]
    for page, names in PAGES.items():
        if name in names:
            return f"{page}#{name}"
    for prefix, pattern in RULES:
        if name.startswith(prefix):
            return pattern.format(name=name)
    return None


def resolve(app, env, node, contnode):
    """Make a link of a reference that Sphinx did not find in these pages."""
    target = address(node.get("reftarget", ""))
    if target is None or node.get("refdomain") != "py":
        return None
    link = nodes.reference("", "", internal=False, refuri=target)
    link.append(contnode)
    return link
