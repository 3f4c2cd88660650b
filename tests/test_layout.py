"""Imports point one way, and every list of targets knows every registered target."""

import ast
from pathlib import Path

import pytest

from demo.report import TASKS as _  # noqa: F401  (the demo's modules import)
from lib import NAMES
from mvm_targets import TARGETS

ROOT = Path(__file__).parents[1]
LAYERS = [
    {"lib", "batch"},
    {"media", "layers"},
    {"dataset", "masking", "video_swin"},
    {"weights"},
    {"engine"},
    {"teachers", "agent"},
    {"mvm_targets"},
    {"model"},
    {"tasks"},
    {path.stem for path in ROOT.glob("*.py") if path.stem.startswith(("main_", "eval_"))} | {"violet"},
    {"app"},
    {"_tools", "demo"},
    {"study"},
    {"tests", "bench"},
]
PLACES = {name: place for place, names in enumerate(LAYERS) for name in names}
FILES = [path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] in PLACES
         or path.parent == ROOT]  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_down(path):
    own = path.parts[0].removesuffix(".py")
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in (name.split(".")[0] for name in names):
            if name in PLACES and name != own:
                assert PLACES[name] <= PLACES[own], f"{path} imports {name}"
                assert not name.startswith(("main_", "eval_")) or PLACES[own] > PLACES["violet"]


def test_the_root_is_taken_in_at_a_glance():
    assert len(list(ROOT.glob("*.py"))) <= 17  # app.py, the page, is the 17th: users look for it there
    assert PLACES.keys() >= {path.stem for path in ROOT.glob("*.py")}


def test_every_registered_target_is_known_everywhere():
    assert set(NAMES["mvm_target"]) == set(TARGETS)
    for page in ("README.md", "docs/targets.md"):
        text = (ROOT / page).read_text()
        assert all(f"`{name}`" in text for name in TARGETS), page
