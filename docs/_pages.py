"""Pages of the documentation site that are made from the rest of the project: the front page is README, and every
catalog (tasks, encoders, decoders, ...) becomes a page of the reference, so that a new file is in it by being there.

Run by mkdocs (``mkdocs build``), which needs ``pip install -e '.[docs]'``.
"""

from __future__ import annotations

import ast
import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mkdocs_gen_files

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "polyptych"
CATALOGS = {"recipes": "Recipes", "tasks": "Tasks", "datasets": "Datasets", "backbones": "Backbones",
            "encoders": "Encoders", "decoders": "Decoders", "balancers": "Balancers"}
GROUPS = {"prediction": ("Prediction", ("predictor", "scene", "pipeline", "model", "windows", "video")),
          "export": ("Export", ("exporting", "formats", "quantization", "runtime", "metadata"))}
LIBRARY = {"polyptych.types": "The types that cross a boundary", "polyptych.component": "The mechanism",
           "polyptych.run": "Every choice of a run", "polyptych.ops.affinity": "Affinity algebra"}


def page(path: str, text: str) -> None:
    with mkdocs_gen_files.open(path, "w") as file:
        file.write(text)


def public(path: Path) -> Iterator[str]:
    """The dotted names of a component's class, or of a recipe file's functions."""
    module = ".".join(("polyptych", *path.relative_to(PACKAGE).with_suffix("").parts))
    for node in ast.parse(path.read_text()).body:
        kind = ast.FunctionDef if path.parent.name == "recipes" else ast.ClassDef
        if isinstance(node, kind) and not node.name.startswith("_"):
            yield f"{module}.{node.name}"
            if kind is ast.ClassDef:
                return


def catalog(folder: str, title: str) -> str:
    """One section per component: what its file says of itself, its class and its options."""
    parts = [f"# {title}\n"]
    for path in sorted((PACKAGE / folder).glob("[!_]*.py")):
        said = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", ast.get_docstring(ast.parse(path.read_text())) or "")
        summary = said.replace("\nSource:", "\n\n*Source:*")
        parts += [f"## `{path.stem}`\n", f"{summary}\n"]
        parts += [f"::: {name}\n    options:\n      heading_level: 3\n" for name in public(path)]
    return "\n".join(parts)


def command_line() -> str:
    """Every command with its help, as it is printed."""
    parts = ["# Command line\n",
             "Every command, and what `--help` prints for it. The options of `train`, `compare`, `ablate` and `search` "
             "depend on the recipe and its components; those of `rooms` are shown.\n"]
    environment = os.environ | {"COLUMNS": "110", "NO_COLOR": "1", "PYTHONPATH": str(PACKAGE.parent)}
    for path in sorted((PACKAGE / "cli").glob("[!_]*.py")):
        name = path.stem.replace("_", "-")
        recipe = ["rooms"] if name in ("train", "compare", "ablate", "search") else []
        said = subprocess.run([sys.executable, "-m", "polyptych", name, *recipe, "--help"], env=environment,
                              capture_output=True, text=True, check=True).stdout
        parts.append(f"## `polyptych {name}`\n\n```text\n{said.strip()}\n```\n")
    return "\n".join(parts)


def moved(text: str) -> str:
    """Links of a page at the root of the project, as seen from the folder of the documentation."""
    text = re.sub(r"\]\(docs/", "](", text)
    return text.replace("](CONTRIBUTING.md)", "](contributing.md)").replace("](CHANGELOG.md)", "](changelog.md)")


def notebook(path: Path) -> str:
    """A notebook with what it printed and drew when it was executed last; its pictures become files of the site."""
    parts = [f"[Download this notebook](notebooks/{path.name})"]
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for number, output in enumerate(cell.get("outputs", [])):
            shown = output.get("data", {})
            if "image/png" in shown:
                picture = f"images/{path.stem}-{cell['id']}-{number}.png"
                with mkdocs_gen_files.open(picture, "wb") as file:
                    file.write(base64.b64decode(shown["image/png"]))
                parts.append(f"![What this cell draws]({picture})")
            elif text := "".join(output.get("text") or shown.get("text/plain", "")):
                parts.append(f"```text\n{text.rstrip()}\n```")
    parts[0], parts[1] = parts[1], parts[0]  # the title stands in the first cell
    return "\n\n".join(parts) + "\n"


page("index.md", moved((ROOT / "README.md").read_text()))
page("contributing.md", moved((ROOT / "CONTRIBUTING.md").read_text()))
page("rooms-notebook.md", notebook(ROOT / "docs" / "notebooks" / "rooms.ipynb"))
page("changelog.md", moved((ROOT / "CHANGELOG.md").read_text()))
page("reference/index.md", "# Reference\n\nThe functions of the package, `import polyptych`:\n\n" + "\n".join(
    f"::: polyptych.{home}.{name}\n" for name, home in sorted(
        ast.literal_eval(re.search(r"_HOMES = (\{.*?\})", (PACKAGE / "__init__.py").read_text(), re.DOTALL)[1]).items(),
        key=lambda item: item[0].lower()) if f"polyptych.{home}" not in LIBRARY))
for folder, title in CATALOGS.items():
    page(f"reference/{folder}.md", catalog(folder, title))
for package, (title, modules) in GROUPS.items():
    page(f"reference/{package}.md", f"# {title}\n\n" + "\n".join(
        f"::: polyptych.{package}.{module}\n" for module in modules))
page("reference/command-line.md", command_line())
for module, title in LIBRARY.items():
    page(f"reference/{module.removeprefix('polyptych.').replace('.', '_')}.md", f"# {title}\n\n::: {module}\n")
