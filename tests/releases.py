"""Releases of Common Voice in the official layout, row by row."""

from pathlib import Path

import numpy as np
import soundfile

COLUMNS = [
    "client_id",
    "path",
    "sentence_id",
    "sentence",
    "up_votes",
    "down_votes",
    "age",
    "gender",
    "accents",
]


def tone(seconds: float = 0.5, rate: int = 16_000, channels: int = 1) -> np.ndarray:
    wave = 0.3 * np.sin(np.arange(int(seconds * rate)) * 2 * np.pi * 440 / rate).astype(np.float32)
    return np.stack([wave] * channels, axis=1)


def clip(folder: Path, name: str, seconds: float = 0.5, rate: int = 16_000, channels: int = 1) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / name, tone(seconds, rate, channels), rate, format="MP3")
    return name


def row(path: str, sentence: str, client: str = "anna", **cells: str) -> str:
    cells |= {"client_id": client, "path": path, "sentence": sentence}
    return "\t".join(cells.get(column, "") for column in COLUMNS)


def locale_folder(root: Path, rows: list[str], split: str = "train", columns: list[str] = COLUMNS) -> Path:
    (root / "clips").mkdir(parents=True, exist_ok=True)
    (root / f"{split}.tsv").write_text("\n".join(["\t".join(columns), *rows]) + "\n", encoding="utf-8")
    return root


def write_durations(root: Path, milliseconds: dict[str, str]) -> None:
    lines = ["clip\tduration[ms]", *(f"{name}\t{value}" for name, value in milliseconds.items())]
    (root / "clip_durations.tsv").write_text("\n".join(lines) + "\n")
