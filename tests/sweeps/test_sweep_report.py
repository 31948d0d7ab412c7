"""Tables of a sweep in any state: means over seeds, the best values are marked."""

import json
from pathlib import Path

import pytest

from diva.errors import UserError
from diva.sweeps.folder import Outcome, SweepRun, find_runs, write_outcome
from diva.sweeps.picture import picture
from diva.sweeps.report import report
from diva.sweeps.table import gather, markdown


def write_run(
    folder: Path, overrides: list[str], kl: float | None = None, outcome: Outcome | None = None
) -> None:
    one = SweepRun(folder, tuple(overrides))
    one.begin()
    rows = "\n".join(f"{step},{5 - step},{kl or 1}" for step in range(3))
    (folder / "metrics.csv").write_text(f"step,train/loss,val/kl\n{rows}\n")
    if kl is not None:
        summary = {"val/kl": kl, "val/first_token_agreement": kl, "seconds": 60.0}
        (folder / "summary.json").write_text(json.dumps(summary))
    if outcome:
        write_outcome(folder, outcome)


def test_seeds_are_put_together_and_the_best_is_marked(tmp_path):
    for number, (lr, seed, kl) in enumerate(
        [(1, 1, 0.3), (1, 2, 0.5), (2, 1, 0.2), (2, 2, 0.4), (3, 1, None)]
    ):
        write_run(tmp_path / str(number), [f"optimizer.lr={lr}", "max_steps=5", f"seed={seed}"], kl)
    results = gather(find_runs(tmp_path))
    assert results.varied == ("optimizer.lr",)
    table = markdown(results)
    # Standard deviation of 0.3 and 0.5: sqrt(2 * 0.1**2 / (2 - 1)).
    assert "| 1 | 2 | 0.4000 ± 0.1414 | **0.4000 ± 0.1414** | 1.0 ± 0.0 |" in table
    assert "| 2 | 2 | **0.3000 ± 0.1414** | 0.3000 ± 0.1414 | 1.0 ± 0.0 |" in table
    assert "| 3 | 0 of 1 |  |  |  |" in table
    assert "| 4 | optimizer.lr=3 seed=1 | unfinished | last at step 3 |" in table


@pytest.mark.parametrize("keys", [0, 1, 2, 3])
def test_every_number_of_varied_keys_has_a_picture(tmp_path, keys):
    names = ["optimizer.lr", "objective", "data.batch_size"][:keys]
    rows = [("0.001", "diva", "4"), ("0.1", "curriculum", "8"), ("0.01", "diva", "16")]
    for number, values in enumerate(rows):
        given = [f"{name}={value}" for name, value in zip(names, values, strict=False)]
        write_run(tmp_path / str(number), [*given, f"seed={number}"], 0.1 * (number + 1))
    write_run(tmp_path / "3", ["seed=9"], outcome=Outcome("pruned", "val/kl 9 at step 3 of 5"))
    write_run(tmp_path / "4", ["seed=10"], outcome=Outcome("failed", "MemoryError"))
    _, picture = report(tmp_path, tmp_path)
    assert picture.stat().st_size > 10_000


def test_legends_of_a_sweeps_picture_stand_beside_its_panels(tmp_path):
    for number, (lr, objective) in enumerate([("0.1", "diva"), ("0.1", "curriculum"), ("0.2", "diva")]):
        given = [f"optimizer.lr={lr}", f"objective={objective}"]
        write_run(tmp_path / str(number), given, 0.1 * (number + 1))
    write_run(tmp_path / "3", ["optimizer.lr=0.2", "objective=curriculum"], outcome=Outcome("pruned", "bad"))
    figure = picture(gather(find_runs(tmp_path)))
    varied, loss, measure = (axes for axes in figure.axes if axes.lines)
    assert [axes.get_yscale() for axes in (varied, loss, measure)] == ["linear", "linear", "log"]
    assert not any(axes.get_legend() for axes in (varied, loss, measure))
    texts = [[t.get_text() for t in of.get_legend().get_texts()] for of in figure.axes if of.get_legend()]
    assert texts == [
        ["diva", "curriculum"],
        ["0.1 diva", "0.1 curriculum", "0.2 diva", "0.2 curriculum", "finished", "pruned"],
    ]


def test_a_sweep_of_which_nothing_has_finished(tmp_path):
    SweepRun(tmp_path / "0", ("seed=1",)).begin()
    table, _ = report(tmp_path, tmp_path)
    assert "| 0 | seed=1 | unfinished | no step yet |" in table.read_text()


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run of a sweep"):
        report(tmp_path, tmp_path)


def test_the_picture_shows_the_metric_that_is_asked_for(tmp_path):
    for number, (lr, value) in enumerate([("0.1", 0.5), ("0.2", 0.9)]):
        write_run(tmp_path / str(number), [f"optimizer.lr={lr}"], value)
    figure = picture(gather(find_runs(tmp_path)), "val/first_token_agreement")
    varied = figure.axes[0]
    assert varied.get_title(loc="left") == "first-token agreement with the text teacher, by what was varied"
    assert [float(line.get_ydata()[0]) for line in varied.lines] == [0.5, 0.5, 0.9, 0.9]
    with pytest.raises(UserError, match=r"val/nothing.*there are: val/kl, val/first_token_agreement"):
        report(tmp_path, tmp_path, "val/nothing")
