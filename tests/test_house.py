"""Rules that no linter checks for us."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "medseg").rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
Function = ast.FunctionDef | ast.AsyncFunctionDef
MOST_LINES, MOST_BODY_LINES = 400, 60

#: Protocol -> the file with the laws that every implementation is held to.
CONTRACTS = {
    "CaseSource": "test_case_sources.py",
    "ConvFactory": "test_networks.py",
    "Engine": "test_engines.py",
    "FilterPrior": "test_filter_priors.py",
    "GenerativeModel": "test_generative_models.py",
    "Step": "test_steps.py",
}


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 80


def nodes() -> Iterator[tuple[str, ast.AST]]:
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}", node


def fault(node: ast.AST) -> str | None:
    """Return what is forbidden about a node."""
    match node:
        case ast.Call(func=ast.Name(id="print")):
            return "print: use logging"
        case ast.Call(func=ast.Name(id="eval" | "exec")):
            return "nothing from outside is executed"
        case ast.Attribute(value=ast.Name(id="os"), attr="environ" | "getenv"):
            return "no environment variables"
        case ast.Assert():
            return "assert vanishes under -O: raise an error of medseg.errors"
        case ast.ExceptHandler(type=None):
            return "except: catches everything"
        case ast.Import(names=names) if any(
            n.name.split(".")[0] in {"pickle", "dill", "cloudpickle", "shelve"} for n in names
        ):
            return "pickle runs code"
        case ast.ImportFrom(module=module) if (module or "").split(".")[0] in {"pickle", "dill"}:
            return "pickle runs code"
        case ast.Attribute(value=ast.Name(id="torch"), attr="load" | "save"):
            return "torch.load and torch.save use pickle: use safetensors"
        case ast.keyword(arg="allow_pickle", value=ast.Constant(value=True)):
            return "pickle runs code"
    return None


def test_nothing_forbidden_is_in_the_package() -> None:
    assert [f"{where} {found}" for where, node in nodes() if (found := fault(node))] == []


@pytest.mark.parametrize(
    "line",
    [
        "print(1)",
        "os.environ['A']",
        "assert x",
        "try:\n  pass\nexcept:\n  pass",
        "import pickle",
        "from pickle import loads",
        "torch.load('x')",
        "np.load('x', allow_pickle=True)",
    ],
)
def test_the_check_for_forbidden_things_finds_them(line: str) -> None:
    assert any(fault(node) for node in ast.walk(ast.parse(line)))


def test_files_are_short() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {str(p): n for p, n in lengths.items() if n > MOST_LINES} == {}


def body_lines(function: Function) -> int:
    """Return the lines of a function without its signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_functions_are_short() -> None:
    found = {w: body_lines(n) for w, n in nodes() if isinstance(n, Function)}
    assert {where: lines for where, lines in found.items() if lines > MOST_BODY_LINES} == {}


def public_without_docstring(tree: ast.Module) -> Iterator[str]:
    if ast.get_docstring(tree) is None:
        yield "module"
    for node in tree.body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None:
            yield node.name
        if not isinstance(node, ast.ClassDef):
            continue
        for member in node.body:
            # A method that overrides one of a base or protocol has its words there.
            named = isinstance(member, Function) and not member.name.startswith("_")
            if named and ast.get_docstring(member) is None and member.name != "forward":
                yield f"{node.name}.{member.name}"


def test_every_public_object_has_a_docstring() -> None:
    missing = [
        f"{path.relative_to(ROOT)} {name}"
        for path, tree in TREES.items()
        for name in public_without_docstring(tree)
    ]
    assert missing == []


def protocols() -> dict[str, str]:
    return {
        node.name: where
        for where, node in nodes()
        if isinstance(node, ast.ClassDef)
        and any("Protocol" in ast.unparse(base) for base in node.bases)
        and not node.name.startswith("_")
    }


def test_protocols_have_contract_tests() -> None:
    found = protocols()
    assert set(CONTRACTS) <= set(found), "a protocol was renamed: rename it here"
    for name, file in CONTRACTS.items():
        path = ROOT / "tests" / "contracts" / file
        assert path.is_file(), f"{name} has no contract test"
        assert "def test_" in path.read_text(encoding="utf-8")


def test_protocols_without_contract_tests_are_known() -> None:
    """A protocol that joins the package gets a contract test, or a word here why it has none."""
    elsewhere = {
        "Batches",  # what the loop asks of a sampler: tests/training, tests/translation
        "Objective",  # tests/training: two implementations, each with laws of its own
        "PositionalPrior",  # tests/variational/test_kl.py: an optional part of FilterPrior
        "PriorTable",  # LayerPriors alone: tests/priors/test_layer_priors.py
        "RandomLayer",  # what sampled_weights holds: test_sampling.py, test_swag.py
        "Undo",  # what Step.apply returns: test_steps.py
    }
    contracts = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "contracts").glob("*.py")
    )
    unknown = {
        name: where
        for name, where in protocols().items()
        if name not in CONTRACTS and name not in elsewhere and name not in contracts
    }
    assert unknown == {}


def test_every_subfolder_of_tests_has_unique_file_names() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_modules_of_settings_keep_real_annotations() -> None:
    """Postponed annotations are strings, which pydantic resolves late and pyright not at all."""
    wrong = [
        str(path.relative_to(ROOT))
        for path, tree in TREES.items()
        if "from __future__ import annotations" in path.read_text(encoding="utf-8")
        and any(
            isinstance(node, ast.ClassDef)
            and any(ast.unparse(d) == "settings" for d in node.decorator_list)
            for node in tree.body
        )
    ]
    assert wrong == []


def test_the_checks_read_functions_as_python_does() -> None:
    source = inspect.getsource(body_lines)
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef)
    assert body_lines(function) == 2
