"""The package as a whole: what importing it costs, what may import what, and what no file does."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import npquant

core = pytest.mark.core
PACKAGE = Path(npquant.__file__).parent
TESTS = Path(__file__).parent

# A module imports only from its own group and those before it.
ORDER = [{"errors"}, {"_checks", "_base", "_container", "_formats", "_rows", "kernels"},
         {"persist", "kmeans", "transforms", "metrics", "datasets", "nn"}, {"quantizers"}, {"index"},
         {"_supervision", "_training", "deep", "catalyzer"}, {"distributed", "plot", "_demo"},
         {"_console", "_about", "_commands"}, {"cli"}, {"__main__"}]
RANK = {name: rank for rank, group in enumerate(ORDER) for name in group}
COMPILERS = {"numba", "llvmlite"}
MAY_PRINT = {"npquant.cli", "npquant._console", "npquant.__main__"}


def modules():
    """Yield (dotted name, source) of every file of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path.read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------- reading imports


def imports(name, source, package=False):
    """Yield (dotted name imported, whether at the top level of the module, line) of every import in ``source``."""
    tree = ast.parse(source)
    late = {node for function in ast.walk(tree) if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef,
                                                                        ast.Lambda))
            for node in ast.walk(function)}
    parent = name.split(".") if package else name.split(".")[:-1]
    for node in ast.walk(tree):
        top = node not in late
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, top, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = parent[:len(parent) - node.level + 1] if node.level else []
            base = ".".join(base + ([node.module] if node.module else []))
            for alias in node.names:
                yield f"{base}.{alias.name}", top, node.lineno
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value, top, node.lineno


def wrong_imports(name, source, package=False):
    """Return what is wrong with the imports of the module ``name``, as words."""
    wrong = []
    parts = name.split(".")
    if len(parts) == 1:
        return wrong  # the root: its imports are for type checkers, and test_importing_is_cheap holds the rest
    mine = parts[1]
    if mine not in RANK:
        return [f"{name} has no place in the order: give it one"]
    for target, top, line in imports(name, source, package):
        where = f"{name}:{line} imports {target}"
        other, *rest = target.split(".")
        if other == "npquant":
            if not rest:
                wrong.append(f"{where}: import the module that is meant")
                continue
            thing = rest[0]
            if thing == "__version__":
                continue
            if thing in npquant._HOME:
                thing = npquant._HOME[thing].partition(".")[0]
            if thing not in RANK:
                wrong.append(f"{where}, which has no place in the order")
            elif RANK[thing] > RANK[mine]:
                wrong.append(f"{where}, which stands above it")
            elif mine == "nn" and thing == "quantizers":
                wrong.append(f"{where}: nn is handed a callable")
        elif other in COMPILERS:
            if mine != "kernels":
                wrong.append(f"{where}: compilers are for kernels")
            elif top:
                wrong.append(f"{where} when it is imported itself")
        elif other in sys.stdlib_module_names:
            continue
        elif mine == "errors":
            wrong.append(f"{where}: errors are made of the standard library")
        elif other != "numpy" and top:
            wrong.append(f"{where} when it is imported itself: it is optional")
    return wrong


def is_package(name):
    return (PACKAGE.parent / name.replace(".", "/")).is_dir()


@core
def test_the_order_of_imports():
    found = dict(modules())
    assert {"npquant", "npquant.errors", "npquant.kernels.scan", "npquant.index.flat"} <= set(found)
    assert [words for name, source in found.items() for words in wrong_imports(name, source, is_package(name))] == []


@core
@pytest.mark.parametrize(("name", "source", "words"), [
    ("npquant.errors", "import numpy", "standard library"),
    ("npquant.errors", "from npquant import _checks", "above it"),
    ("npquant._checks", "from npquant.kmeans import KMeans", "above it"),
    ("npquant._base", "def f():\n    from npquant import KMeans", "above it"),
    ("npquant.kernels.scan", "import npquant.quantizers.base", "above it"),
    ("npquant.kernels.scan", "import numba", "when it is imported itself"),
    ("npquant.kernels.scan", "from llvmlite import ir", "when it is imported itself"),
    ("npquant.kmeans", "from .quantizers import base", "above it"),
    ("npquant.kmeans", "from . import deep", "above it"),
    ("npquant.transforms", "def f():\n    import numba.typed", "compilers are for kernels"),
    ("npquant.nn.layers", "from ..quantizers.base import Quantizer", "above it"),
    ("npquant.nn.output", "from importlib import import_module\nimport_module('npquant.quantizers.base')", "above it"),
    ("npquant.quantizers.base", "if True:\n    from npquant.index import flat", "above it"),
    ("npquant.index.flat", "from npquant import deep", "above it"),
    ("npquant.deep", "from npquant import plot", "above it"),
    ("npquant.plot", "from npquant import cli", "above it"),
    ("npquant.plot", "import matplotlib.pyplot as plt", "optional"),
    ("npquant.metrics", "try:\n    import scipy\nexcept ImportError:\n    pass", "optional"),
    ("npquant.deep", "import npquant", "that is meant"),
    ("npquant.deep", "from npquant import utils", "no place"),
    ("npquant.utils", "", "no place"),
])
def test_wrong_imports_are_found(name, source, words):
    [found] = wrong_imports(name, source)
    assert words in found
    assert name in found


@core
@pytest.mark.parametrize(("name", "source"), [
    ("npquant.kernels._jit", "def f():\n    from numba import njit"),
    ("npquant.persist", "from npquant import __version__"),
    ("npquant.quantizers.product", "from npquant.quantizers.base import Quantizer\nfrom ..kmeans import lloyd"),
    ("npquant.kmeans", "import numpy as np\nfrom npquant import transforms, _checks\nimport os.path"),
    ("npquant.plot", "def f():\n    import matplotlib"),
])
def test_right_imports_are_left_alone(name, source):
    assert wrong_imports(name, source) == []


def not_of_its_own(source):
    """Return what an oracle imports beyond the standard library and NumPy."""
    return sorted({target.partition(".")[0] for target, _, _ in imports("reference", source)}
                  - sys.stdlib_module_names - {"numpy"})


@core
def test_oracles_stand_by_themselves():
    assert not_of_its_own((TESTS / "reference.py").read_text(encoding="utf-8")) == []


@core
@pytest.mark.parametrize("source", ["import npquant", "from npquant.kernels import scan", "import npquant.metrics as m",
                                    "def f():\n    from npquant import KMeans", "import laws",
                                    "import importlib\nimportlib.import_module('npquant.metrics')"])
def test_an_oracle_that_asks_the_library_is_found(source):
    assert not_of_its_own(source) in (["npquant"], ["laws"])


# ------------------------------------------------------------------------------------- asserts and prints


def rude(name, source):
    """Return the lines with an assert, which ``-O`` removes, or a print, which nobody asked for."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert):
            found.append(f"{name}:{node.lineno} assert")
        elif name not in MAY_PRINT and isinstance(node, ast.Name) and node.id in ("print", "pprint"):
            found.append(f"{name}:{node.lineno} print")
        elif name not in MAY_PRINT and isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr") \
                and isinstance(node.value, ast.Name) and node.value.id == "sys":
            found.append(f"{name}:{node.lineno} sys.{node.attr}")
    return found


@core
def test_no_asserts_and_no_prints():
    assert [line for name, source in modules() for line in rude(name, source)] == []


@core
@pytest.mark.parametrize("source", ["def f(x):\n    assert x", "print('here')", "import sys\nsys.stderr.write('x')",
                                    "say = print", "[print(i) for i in 'ab']"])
def test_rudeness_is_found(source):
    assert len(rude("npquant.deep", source)) == 1
    assert len(rude("npquant.cli", source)) == ("assert" in source)
    assert rude("npquant.deep", "'''assert x; print(x)'''\nsprint = 1") == []


# ------------------------------------------------------------------------------------- importing


def python(code):
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60,
                          cwd=PACKAGE.parent, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def weight(what):
    """What an import adds to a bare interpreter: (modules, those not of the standard library)."""
    added = python("import sys\nbefore = set(sys.modules)\n"
                   f"import {what}\nprint(*sorted(set(sys.modules) - before))").split()
    return added, sorted({name.partition(".")[0] for name in added} - sys.stdlib_module_names)


@core
def test_importing_is_cheap():
    added, foreign = weight("npquant")
    assert foreign == ["npquant"]
    assert len(added) < 60, added


@core
def test_a_heavy_import_is_seen():
    added, foreign = weight("numpy")
    assert "numpy" in foreign
    assert len(added) >= 60


def resolve(name):
    home = npquant._HOME.get(name, name)
    if name != "__version__" and importlib.util.find_spec(f"npquant.{home}") is None:
        pytest.skip(f"npquant.{home} is not there yet")
    return getattr(npquant, name)


@core
@pytest.mark.parametrize("name", npquant.__all__)
def test_public_names(name):
    value = resolve(name)
    assert name in dir(npquant)
    if name in npquant._HOME:
        assert value.__name__ == name
        assert value.__module__ == f"npquant.{npquant._HOME[name]}"
        assert value.__doc__
        assert resolve(name) is value
    elif name != "__version__":
        assert value.__name__ == f"npquant.{name}"
        assert value.__doc__


@core
def test_names_that_are_not_there():
    assert len(set(npquant.__all__)) == len(npquant.__all__)
    with pytest.raises(AttributeError, match=r"npquant.*'Kmeans'"):
        _ = npquant.Kmeans


@core
def test_type_checkers_see_the_same_names():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {target for target, _, _ in imports("npquant", ast.unparse(block), package=True)}
    told = {f"npquant.{home}.{name}" for name, home in npquant._HOME.items()}
    assert seen == told | {f"npquant.{name}" for name in npquant._MODULES}
    assert all(alias.asname == alias.name for node in block.body for alias in node.names)  # re-exported


@core
def test_the_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|[ab]\d+|rc\d+)?", npquant.__version__)
    assert f'__version__ = "{npquant.__version__}"' in (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    assert (PACKAGE / "py.typed").exists()


@core
def test_names_come_lazily():
    python("import npquant, sys\nassert 'npquant.kmeans' not in sys.modules\nnpquant.KMeans\n"
           "assert 'npquant.kmeans' in sys.modules and 'npquant.deep' not in sys.modules\n"
           "assert 'KMeans' in vars(npquant)\nassert 'numba' not in sys.modules")
