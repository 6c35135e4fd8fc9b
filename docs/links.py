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

#: Pages that hold several names, by the name as docstrings and signatures write it.
PAGES = {
    "torch.Tensor": f"{TORCH}/tensors.html#torch.Tensor",
    "torch.device": f"{TORCH}/tensor_attributes.html#torch.device",
    "torch.dtype": f"{TORCH}/tensor_attributes.html#torch.dtype",
    "torch.Size": f"{TORCH}/size.html#torch.Size",
    "torch.utils.data.DataLoader": f"{TORCH}/data.html#torch.utils.data.DataLoader",
    "torch.optim.Optimizer": f"{TORCH}/optim.html#torch.optim.Optimizer",
    "pyro.infer.SVI": f"{PYRO}/inference_algos.html#pyro.infer.svi.SVI",
    "pyro.infer.svi.SVI": f"{PYRO}/inference_algos.html#pyro.infer.svi.SVI",
    "pyro.infer.Trace_ELBO": f"{PYRO}/inference_algos.html#pyro.infer.trace_elbo.Trace_ELBO",
    "pyro.infer.trace_elbo.Trace_ELBO": (
        f"{PYRO}/inference_algos.html#pyro.infer.trace_elbo.Trace_ELBO"
    ),
    "pyro.infer.Predictive": f"{PYRO}/inference_algos.html#pyro.infer.predictive.Predictive",
    "pyro.infer.autoguide.AutoNormal": f"{PYRO}/infer.autoguide.html#autonormal",
    "pyro.infer.autoguide.AutoGuide": f"{PYRO}/infer.autoguide.html#autoguide",
    "pyro.optim.PyroOptim": f"{PYRO}/optimization.html#pyro.optim.optim.PyroOptim",
    "pyro.optim.optim.PyroOptim": f"{PYRO}/optimization.html#pyro.optim.optim.PyroOptim",
    "pyro.nn.PyroModule": f"{PYRO}/nn.html#pyro.nn.module.PyroModule",
    "pyro.nn.module.PyroModule": f"{PYRO}/nn.html#pyro.nn.module.PyroModule",
    "arviz.InferenceData": f"{ARVIZ}/api/inference_data.html",
}
#: Projects with one page for each name.
RULES = (
    ("torch.", f"{TORCH}/generated/{{name}}.html#{{name}}"),
    ("numpy.", f"{NUMPY}/generated/{{name}}.html"),
    ("xarray.", f"{XARRAY}/{{name}}.html"),
)


def address(name: str) -> str | None:
    """Address of the page on which another project documents a name."""
    if name in PAGES:
        return PAGES[name]
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
