"""A real browser for the tests of pages; `python tests/browser.py` says where it is."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Playwright, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium(playwright: Playwright) -> str | None:
    """The system's Chromium, which `make setup` installs, or playwright's own."""
    for path in (*map(shutil.which, NAMES), playwright.chromium.executable_path):
        if path and Path(path).is_file():
            return path
    return None


@contextmanager
def launched(*flags: str) -> Iterator[Browser]:
    """Chromium with these flags, closed at the end. Where there is none, the test is skipped; in CI it fails."""
    with sync_playwright() as playwright:
        path = find_chromium(playwright)
        if path is None:
            in_ci = os.environ.get("CI") or os.environ.get("GITHUB_ACTIONS")
            (pytest.fail if in_ci else pytest.skip)("Chromium is missing; make setup says how to install it")
        # Without a sandbox, because Chromium refuses root one.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", *flags])
        yield browser
        browser.close()


if __name__ == "__main__":
    with sync_playwright() as started:
        print(found := find_chromium(started))
    sys.exit(found is None)
