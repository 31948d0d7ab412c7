"""Values on the command line that Hydra's grammar refuses: paths and plain text are read, others have a remedy."""

import pytest
from omegaconf import OmegaConf

from diva.config.hydra_private import parse, readable
from diva.errors import UserError
from diva.evaluate import full_arguments
from diva.train import resume_arguments

pytestmark = pytest.mark.faults


@pytest.mark.parametrize(
    "value",
    ["/d/日本語", "/d/a=b", "/d/it's", "/d/(1) [2] {3}", "/d/a&b#c!d;e", "../é", "été", "a=b", "/d/é\\", "/d/a\\'b"],
)  # fmt: skip
def test_text_and_paths_are_read_as_they_are(value):
    assert parse([readable(f"data.root={value}")])[0].value() == value


def test_a_leading_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/Zoë")
    for given, path in (("~/x", "/home/Zoë/x"), ("~", "/home/Zoë"), ("~/a=b", "/home/Zoë/a=b")):
        assert parse([readable(f"data.root={given}")])[0].value() == path


def test_a_comma_in_a_path_that_is_there_separates_nothing(tmp_path):
    (tmp_path / "a,b").mkdir()
    assert parse([readable(f"data.root={tmp_path}/a,b")])[0].value() == f"{tmp_path}/a,b"
    assert parse([readable("seed=1,2")])[0].is_sweep_override()


@pytest.mark.parametrize(
    "given", ["seed=1", "x=[1,2]", "x={a: 1}", "name='a b'", "-m", "--config-dir=é", "x=${y}"]
)
def test_what_hydra_reads_stays_as_it_is(given):
    assert readable(given) == given


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ("name=a(b", "\"name='a(b'\""),
        ("x=[a,é]", "each text by itself"),
        ("x={a: ~/b}", "each text by itself"),
    ],
)
def test_what_cannot_be_guessed_has_its_remedy(given, remedy):
    with pytest.raises(UserError, match="cannot read the override") as caught:
        parse([readable(given)])
    assert given in str(caught.value)
    assert remedy in str(caught.value)


def test_a_run_in_a_folder_of_any_name_is_resumed(tmp_path, monkeypatch):
    run = tmp_path / "it's 日本=語"
    (run / "checkpoints").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(["data.root='/d/é'"]), run / "overrides.yaml")
    monkeypatch.setattr("diva.training.checkpoints.check_resumable", lambda path: None)
    resumed = resume_arguments([readable(f"resume={run}")])
    assert [override.value() for override in parse(resumed)] == ["/d/é", str(run), str(run)]
    assert resume_arguments(resumed) == resumed


def test_a_system_in_a_folder_of_any_name_is_evaluated():
    given = [*map(readable, full_arguments(["system=/d/it's 日本=語/run"]))]
    assert [override.value() for override in parse(given)] == ["diva", "/d/it's 日本=語/run"]
