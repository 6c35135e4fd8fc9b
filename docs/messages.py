"""The errors and warnings of the package, read from its source."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "pyro_ibvi"
HOLE = "…"
#: Who makes the texts that a function says, where it does not call them by name when it does.
ELSEWHERE = {
    "pyro_ibvi.guides.rows._Closed.__enter__": ("_of_other_size", "_of_no_indices"),
    "pyro_ibvi.models.random_module.RandomModule.__init__": (
        "attention_warning",
        "tied_warning",
        "depth_warning",
    ),
    "pyro_ibvi.mup.roles._without_guesses": ("_assumption",),
    "pyro_ibvi.objectives.mixin.ExpectedLogLikelihood._judge": (
        "_of_dropped",
        "_of_idle",
        "_of_local",
        "_of_other_sites",
    ),
}


@dataclass(frozen=True)
class Message:
    """A sentence of the package.

    Attributes:
        kind: Name of the exception or warning.
        text: The sentence, with a hole for each value that it names.
        module: Where it stands, from the package on.
        function: The function that gives it, with its class.
    """

    kind: str
    text: str
    module: str
    function: str


def template(node: ast.expr, names: dict[str, ast.expr]) -> str:
    """Text of an expression, with holes for what is known only when it runs."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(template(part, names) for part in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return template(left, names) + template(right, names)
        case ast.Name(id=name) if name in names:
            return template(names[name], names)
        case ast.IfExp(body=body):
            return template(body, names)
        case _:
            return HOLE


def assigned(tree: ast.AST) -> dict[str, ast.expr]:
    """Values of the names that a tree assigns once."""
    found: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found.setdefault(node.targets[0].id, []).append(node.value)
    texts = (ast.Constant, ast.JoinedStr, ast.BinOp)
    return {
        name: values[0]
        for name, values in found.items()
        if len(values) == 1 and isinstance(values[0], texts)
    }


def spoken(node: ast.AST) -> tuple[str, ast.expr] | None:
    """Kind and text of what a statement says, if it raises or warns."""
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
        return ast.unparse(node.exc.func), node.exc.args[-1]
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn" and node.args:
        kinds = [*node.args[1:2], *(k.value for k in node.keywords if k.arg == "category")]
        return (ast.unparse(kinds[0]) if kinds else "UserWarning"), node.args[0]
    return None


def own_error(owner: str, node: ast.AST) -> tuple[str, ast.expr] | None:
    """Kind and text of an error of the package's own, which makes its text when it is made."""
    name = owner.removesuffix(".__init__")
    if not (name != owner and name.endswith("Error") and isinstance(node, ast.Call)):
        return None
    if ast.unparse(node.func) != "super().__init__" or not node.args:
        return None
    return name, node.args[0]


def walk(tree: ast.AST, owner: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Nodes of a tree with the function and class that they stand in."""
    for node in ast.iter_child_nodes(tree):
        yield owner, node
        named = isinstance(node, ast.FunctionDef | ast.ClassDef)
        yield from walk(node, f"{owner}.{node.name}".strip(".") if named else owner)


def sentences(tree: ast.AST, names: dict[str, ast.expr]) -> dict[str, list[str]]:
    """What each function of a tree returns or yields of text."""
    found: dict[str, list[str]] = {}
    for owner, node in walk(tree):
        if isinstance(node, ast.Return | ast.Yield) and node.value is not None:
            text = tidy(template(node.value, names))
            if len(text) > 30:
                found.setdefault(owner.rpartition(".")[2], []).append(text)
    return found


def tidy(text: str) -> str:
    """A text without holes beside holes."""
    text = re.sub(rf"(?:{HOLE}\s*)+", f"{HOLE} ", text).strip()
    return re.sub(rf"{HOLE} ([^\w{HOLE}])", rf"{HOLE}\1", text)


def all_messages() -> list[Message]:
    """Every message of the package, by module."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
    said = {
        name: texts
        for tree in trees.values()
        for name, texts in sentences(tree, assigned(tree)).items()
    }
    own_errors = {
        node.name
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name.endswith(("Error", "Warning"))
    }
    found = []
    for path, tree in trees.items():
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        names = assigned(tree)
        for owner, node in walk(tree):
            spoke = spoken(node) or own_error(owner, node)
            if spoke is None or spoke[0].startswith("_"):
                continue
            texts = [tidy(template(spoke[1], names))]
            if texts == [HOLE] and spoke[0] in own_errors:
                continue  # its class has the text
            if texts == [HOLE]:
                called = ast.unparse(spoke[1]).partition("(")[0]
                makers = ELSEWHERE.get(f"{module}.{owner}", (called,))
                texts = [text for maker in makers for text in said.get(maker, [HOLE])]
            found += [Message(spoke[0], text, module, owner) for text in texts]
    return found
