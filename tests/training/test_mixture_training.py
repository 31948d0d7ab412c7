"""A run on a mixture: metrics of each part and over all, and files that count by part."""

import csv
import json
from types import SimpleNamespace

import pytest
import torch
from command_line import metrics, run
from hydra.utils import instantiate
from tiny import SENTENCES, write_release

from diva.config import check_overrides
from diva.models.build import build
from diva.models.parts import load_tokenizer
from diva.run import make_data, make_module
from diva.training.measures import MEASURES


@pytest.fixture(scope="module")
def german(tmp_path_factory):
    """A second corpus, in which clips have the names of the first, and one is missing."""
    root = write_release(tmp_path_factory.mktemp("corpora") / "cv-german", {"train": 9, "dev": 5}, seed=5)
    for split in ("train", "dev"):
        tsv = root / "en" / f"{split}.tsv"
        tsv.write_text(tsv.read_text().replace(SENTENCES[0], "wo ist der hund"))
    (root / "en" / "clips" / "common_voice_en_000003.mp3").unlink()
    return root


@pytest.fixture
def validated(tiny_overrides, tmp_path, monkeypatch):
    """The metrics that a validation of one model logs, for a data config."""
    monkeypatch.setenv("DIVA_CACHE", str(tmp_path / "cache"))

    def validate(*overrides: str, **changes) -> dict[str, float]:
        config = check_overrides("train", [*tiny_overrides, *overrides, "max_steps=1", "data.batch_size=4"])
        model_config = instantiate(config.model)
        tokenizer = load_tokenizer(model_config.llm.name)
        data = make_data(config.data, tokenizer, model_config.adapter, tmp_path)
        data.setup("fit")
        torch.manual_seed(0)
        module = make_module(config, build(model_config, tokenizer))
        strategy = SimpleNamespace(reduce=lambda values, reduce_op: values)
        module._trainer = SimpleNamespace(datamodule=data, max_steps=1, strategy=strategy)
        logged = {}
        module.log = lambda name, value: logged.update({name: value})
        module.on_fit_start()
        module.on_validation_epoch_start()
        with torch.no_grad():
            for number, loader in enumerate(data.val_dataloader()):
                for index, batch in enumerate(loader):
                    module.validation_step(batch, index, number)
        module.on_validation_epoch_end()
        return logged | {"counts": data.clips_in_corpus}

    return validate


@pytest.mark.parametrize("cached", [True, False])
def test_metrics_of_a_part_are_those_of_a_run_on_the_part_alone(validated, tiny_release, german, cached):
    given = [f"precompute.teacher_states={cached}", f"precompute.encoder_frames_gb={int(cached)}"]
    given += ["data.max_skipped_fraction=0.2"]
    parts = [
        f"data.parts.one={{corpus: common_voice, root: {tiny_release}, weight: 2}}",
        f"data.parts.two={{corpus: common_voice, root: {german}}}",
    ]
    mixed = validated("data=mixture", *parts, *given)
    alone = [validated("data=common_voice", f"data.root={root}", *given) for root in (tiny_release, german)]
    assert mixed.pop("counts") == {"train": 22 + 8, "val": 6 + 5, "val_one": 6, "val_two": 5}
    assert list(mixed) == [f"{of}/{measure}" for of in ("val", "val_one", "val_two") for measure in MEASURES]
    for name, of_part in zip(("one", "two"), alone, strict=True):
        for measure in MEASURES:
            assert mixed[f"val_{name}/{measure}"] == pytest.approx(of_part[f"val/{measure}"], rel=1e-4)
    assert mixed["val_one/kl"] != pytest.approx(mixed["val_two/kl"], rel=1e-2)
    # A mean over all clips, not over the parts.
    assert mixed["val/kl"] == pytest.approx((6 * mixed["val_one/kl"] + 5 * mixed["val_two/kl"]) / 11)


@pytest.mark.integration
def test_a_run_on_a_mixture_writes_what_each_part_has(tiny_run, tiny_release, german, shared_cache, tmp_path):
    folder = tmp_path / "run"
    given = [
        *tiny_run,
        "data=mixture",
        f"data.root={tiny_release}",
        "data.parts.one.corpus=common_voice",
        f"data.parts.two={{corpus: common_voice, root: {german}, weight: 3, limit: 5}}",
        "data.max_skipped_fraction=0.1",
        "max_steps=7",
        "val_every=7",
        "sample_responses=1",
        "checkpoint_best=val_two/kl",
        f"hydra.run.dir={folder}",
    ]
    done = run("diva.train", *given, cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["clips_in_corpus"] == {"train": 27, "val": 11, "val_one": 6, "val_two": 5}
    assert {part: found["drawn_per_epoch"] for part, found in summary["parts"].items()} == {
        "one": 7,
        "two": 20,
    }
    assert summary["parts"]["two"]["splits"]["train"]["skipped"] == {"missing file": 1}
    assert summary["clips_skipped"]["two/train"] == {"missing file": 1}
    assert "val_two/kl" in summary
    assert "val/kl" in metrics(folder)[-1]
    assert json.loads((folder / "best.json").read_text())["metric"] == "val_two/kl"
    with (folder / "skipped.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [(row["split"], row["clip_id"]) for row in rows] == [("two/train", "common_voice_en_000003.mp3")]
    assert "part two: 5 clips" in done.stderr
    assert "common_voice: Mozilla Common Voice" in (folder / "export" / "README.md").read_text()
    assert "_target_: diva.data.mixture.Part" in (folder / "config.yaml").read_text()
