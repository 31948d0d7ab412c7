"""`python -m diva.generate` on an export, and what `python -m diva.curves` writes."""

import json
from pathlib import Path

import pytest
import soundfile
import torch
from command_line import run
from conftest import noise

from diva.audio import decode, one_clip
from diva.checkpoints import read_export, write_export
from diva.curves import newest_run, results, write_between_marks
from diva.errors import UserError
from diva.metrics_file import MetricsFile
from diva.models.build import build, load_tokenizer, load_trained
from diva.models.config import AdapterConfig, EncoderConfig, LLMConfig, ModelConfig


@pytest.fixture(scope="module")
def export(tiny_whisper, tiny_llm, tmp_path_factory) -> Path:
    """The export of a model whose adapter is not what `build` would start from."""
    folder = tmp_path_factory.mktemp("run") / "export"
    config = ModelConfig(
        EncoderConfig(str(tiny_whisper)), AdapterConfig(num_query_tokens=12), LLMConfig(str(tiny_llm))
    )
    torch.manual_seed(5)
    model = build(config, load_tokenizer(str(tiny_llm)))
    torch.nn.init.normal_(model.adapter.projection.weight)
    write_export(folder, model.adapter, config.to_dict())
    return folder


def test_an_export_gives_the_same_model_back(export):
    config, state = read_export(export)
    model, _ = load_trained(export.parent)  # a run directory
    assert model.adapter.query_tokens.shape[0] == config["adapter"]["num_query_tokens"] == 12
    for name, value in model.adapter.state_dict().items():
        torch.testing.assert_close(value, state[name], atol=0, rtol=0)


@pytest.mark.integration
def test_one_response_a_line_and_a_damaged_clip_named(export, tmp_path, shared_cache):
    clips = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for seed, clip in enumerate(clips):
        soundfile.write(clip, noise(1.0 + seed, seed), 16_000)
    (tmp_path / "damaged.wav").write_text("no audio")
    arguments = [export, clips[0], tmp_path / "damaged.wav", clips[1], "--max-new-tokens", "6"]
    done = run("diva.generate", *arguments, cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 2
    assert "damaged.wav" in done.stderr
    assert "Traceback" not in done.stderr
    model, tokenizer = load_trained(export)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = [
            tokenizer.decode(model.answer(*one_clip(decode(c)), 6)[0], skip_special_tokens=True)
            for c in clips
        ]
    assert done.stdout.splitlines() == [" ".join(text.split()) for text in expected]
    done = run("diva.generate", tmp_path / "nowhere", clips[0], cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 2
    assert len([line for line in done.stderr.splitlines() if line.startswith("diva:")]) == 1


def test_metrics_file_continues_what_a_killed_run_wrote(tmp_path):
    first = MetricsFile(tmp_path / "metrics.csv")
    for step in range(5):
        first.log_metrics({"train/loss": float(step)}, step)
    resumed = MetricsFile(tmp_path / "metrics.csv")
    resumed.log_metrics({"train/loss": 30.0}, 3)  # its checkpoint was of step 2: steps 3 and 4 come again
    resumed.log_metrics({"val/kl": 0.5}, 3)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines == ["step,epoch,train/loss,val/kl", "0,,0.0,", "1,,1.0,", "2,,2.0,", "3,,30.0,0.5"]


def test_results_are_those_of_the_summary(tmp_path):
    figures = {"alignment_accuracy": 0.5, "first_token_agreement": 0.25, "kl": 1.5}
    summary = {f"{name}/{key}": value for name in ("val", "val_x") for key, value in figures.items()} | {
        "seconds": 60,
        "clips_per_second": 2.0,
        "revision": "abc",
        "machine": {"cpu_threads": 2},
        "responses": [{"question": "a|b", "teacher": "yes", "student": "no"}],
    }
    text = results(summary)
    assert "| alignment accuracy | 0.500 | 0.500 |" in text
    assert "| a\\|b | yes | no |" in text
    readme = tmp_path / "README.md"
    readme.write_text("before <!-- results -->old<!-- /results --> after")
    write_between_marks(readme, text)
    assert readme.read_text() == f"before <!-- results -->\n{text}\n<!-- /results --> after"
    readme.write_text("no marks")
    with pytest.raises(UserError, match="to write the results between"):
        write_between_marks(readme, text)
    with pytest.raises(UserError, match="make train"):
        newest_run(tmp_path)


def test_the_readme_shows_the_committed_results():
    root = Path(__file__).parent.parent
    summary = json.loads((root / "docs" / "mini" / "summary.json").read_text())
    assert results(summary) in (root / "README.md").read_text()
