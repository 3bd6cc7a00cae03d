"""What `import polyptych` offers, pinned: a new name is a promise."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import polyptych


def test_public_names() -> None:
    assert polyptych.__all__ == [
        "Augment", "Balancer", "Batch", "Comparison", "Diagnosis", "InputError", "Network", "Output", "OwnSamples",
        "Predictor", "Profile", "Run", "SampleDataset", "Scene", "TaskMetric", "TaskPart", "balancer", "compare",
        "dataset", "diagnose", "evaluate", "load", "load_published", "losses", "network", "predict", "profile",
        "samples", "task", "train",
    ]
    for name in polyptych.__all__:
        value = getattr(polyptych, name)
        assert value.__name__ == name and value.__doc__, name
    assert set(polyptych.__all__) <= set(dir(polyptych))


def test_no_module_hides_a_public_name() -> None:
    """Importing a module makes it an attribute of the package, in place of a function of its name."""
    modules = {path.stem for path in Path(polyptych.__file__).parent.iterdir()}
    assert not modules & set(polyptych.__all__)


def test_public_names_are_typed() -> None:
    """Every parameter and every result of what programs call."""
    for name in polyptych.__all__:
        value = getattr(polyptych, name)
        if not inspect.isclass(value):
            signature = inspect.signature(value)
            assert signature.return_annotation is not inspect.Signature.empty, name
            assert all(one.annotation is not inspect.Parameter.empty for one in signature.parameters.values()), name


def test_attributes_of_public_classes_are_typed() -> None:
    """A type checker of a program that uses them shall not have to guess."""
    for name in polyptych.__all__:
        value = getattr(polyptych, name)
        if not inspect.isclass(value):
            continue
        nodes = [*ast.walk(ast.parse(textwrap.dedent(inspect.getsource(value))))]
        annotated = [node.target for node in nodes if isinstance(node, ast.AnnAssign)]
        typed = {target.id for target in annotated if isinstance(target, ast.Name)}
        typed |= {target.attr for target in annotated if isinstance(target, ast.Attribute)}
        targets = [target for node in nodes if isinstance(node, ast.Assign) for target in node.targets]
        targets += [inner for target in targets if isinstance(target, ast.Tuple) for inner in target.elts]
        made = {target.attr for target in targets if isinstance(target, ast.Attribute)
                and isinstance(target.value, ast.Name) and target.value.id == "self" and target.attr[0] != "_"}
        assert not made - typed, name


def test_the_changelog_begins_with_the_first_version() -> None:
    versions = re.findall(r"^## (\S+)", (Path(__file__).parents[1] / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[-1] == "0.1.0" and {polyptych.__version__} <= {*versions}


def test_importing_is_cheap() -> None:
    """What comes with a name is imported by the name; stand-ins for torch and the like, which take seconds, show it."""
    program = ("import sys, polyptych; polyptych.InputError; assert 'torch' not in sys.modules; "
               "from polyptych.cli import _stand_ins; assert _stand_ins.install(); "
               "name = 'polyptych.training'; assert name not in sys.modules; assert polyptych.train.__module__ == name")
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(polyptych, "trian")
