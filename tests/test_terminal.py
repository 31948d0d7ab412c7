"""What is shown: a user's text as it is, on a terminal that may go away."""

import sys

import pytest
from rich.table import Table

from diva.sweeps.folder import SweepRun
from diva.sweeps.table import gather, print_tables
from diva.terminal import decorating, progress_bar, progress_open, say, stderr_console, track

pytestmark = pytest.mark.faults
ODD = "a [/] b [bold]c :smile: \\[d]"


def test_text_of_a_user_is_no_markup(capsys, tmp_path):
    file = tmp_path / "e [bold] :cat:.tar"
    file.write_bytes(b"bytes")
    say(ODD)
    with progress_bar() as bar:
        bar.add_task(ODD, total=1)
    assert list(track([1, 2], ODD)) == [1, 2]
    with progress_open(file, "reading") as opened:
        assert opened.read() == b"bytes"
    table = Table("text")
    table.add_row(ODD)
    stderr_console().print(table)
    shown = capsys.readouterr().err
    assert shown.count(ODD) == 4
    assert file.name in shown


def test_values_of_a_sweep_are_no_markup(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    runs = [SweepRun(tmp_path / str(number), (f"name={ODD}{number}",)) for number in range(2)]
    print_tables(gather(runs), ODD)
    shown = capsys.readouterr().out
    assert f"name={ODD}1" in shown


def test_a_terminal_that_has_gone_takes_nothing_along(monkeypatch):
    full = open("/dev/full", "w")  # noqa: SIM115, closing it fails
    monkeypatch.setattr(sys, "stderr", full)
    say(ODD)
    with progress_bar() as bar:
        bar.add_task(ODD, total=1)
    with pytest.raises(OSError, match="No space left"):
        full.close()


def test_what_fails_in_a_decoration_is_one_line(capsys):
    with decorating("table"):
        raise ValueError("two\nlines [/]")
    warning = "warning: no table (ValueError: two lines [/]); everything else is written\n"
    assert capsys.readouterr().err == warning
