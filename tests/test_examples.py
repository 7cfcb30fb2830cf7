"""What `examples/` shows runs, and says what it should."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
SAID = {
    "pytorch_loop.py": "the losses are equal",
    "lightning_module.py": "the losses are equal",
    "own_transform.py": "a random batch after a restart is the same",
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Examples run in examples/ and leave what they build in data/examples, once for all of them."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "examples").mkdir()
    return folder


def test_every_example_is_tested_and_explained() -> None:
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert files == {*SAID, *(path.name for path in NOTEBOOKS)}
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert {name for name in files if f"]({name})" in readme} == files


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SAID)
def test_a_script_runs(
    name: str, clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip({"lightning_module.py": "lightning", "own_transform.py": "torchvision"}.get(name, "torch"))
    monkeypatch.setattr("sys.argv", [name, str(clone / "data" / "examples")])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert SAID[name] in capsys.readouterr().out


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_kept_without_what_it_printed(path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert [cell for cell in code if cell.outputs or cell.execution_count is not None] == []


@pytest.mark.slow  # a kernel that imports PyTorch and trains
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_from_top_to_bottom_without_a_warning(
    path: Path, clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(clone / "examples")}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    assert not any("\x1b" in output.get("text", "") for output in outputs), "a live bar"
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert {"text/html", "image/png"} <= kinds
