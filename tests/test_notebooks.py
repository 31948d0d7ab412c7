"""notebooks/listen.ipynb as it is committed, and what it shows when it is run."""

import ast
from pathlib import Path

import nbformat
import pytest
import soundfile
from nbclient import NotebookClient
from tiny import noise

from diva.models.load import load_model

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "listen.ipynb"


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_committed_without_outputs_and_defines_nothing(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    lines = (line for cell in cells for line in cell.source.splitlines() if not line.startswith("%"))
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    assert not [node for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, definitions)]


@pytest.mark.integration
def test_notebook_prints_answers_and_draws_attention(notebook, export, tmp_path, monkeypatch):
    clip, transcript = tmp_path / "clip.wav", "turn on the light"
    soundfile.write(clip, noise(1.3, 3), 16_000)
    for name, value in {"RUN": export, "CLIP": clip, "TRANSCRIPT": transcript}.items():
        monkeypatch.setenv(f"DIVA_{name}", str(value))
    folder = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=200, kernel_name="python3", resources=folder).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    model = load_model(str(export))
    question = model.processor.apply_chat_template([{"role": "user", "content": transcript}])
    ids = model.generate(**question, do_sample=False, max_new_tokens=128)[0, question["input_ids"].shape[1] :]
    assert f"DiVA, hearing: {model.generate([str(clip)])[0]}\n" in printed
    assert f"reading: {model.processor.decode(ids, skip_special_tokens=True)}\n" in printed
    shown = [output.data for output in outputs if "data" in output]
    assert sum("image/png" in data for data in shown) == 1
    assert sum("<audio" in data.get("text/html", "") for data in shown) == 1
