"""How long a run on a large mixture waits for its data: two locales of Common Voice, tables and names without audio.

`python -m benchmarks.mixture [--clips 500000]`, the number of clips of each locale. Seconds to open each locale and the
mixture of both, seconds to plan an epoch, and the process's peak of memory until then.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import RESULTS, markdown, peak_bytes, write_results
from diva.command import exit_codes, quieten
from diva.config import check_overrides
from diva.data.datamodule import SpeechDataModule
from diva.models.configuration import AdapterConfig
from diva.models.parts import load_tokenizer
from diva.run import make_data

LLM = "HuggingFaceTB/SmolLM2-135M-Instruct"
BATCH, QUERIES = 512, 448  # as in the recipe of the model card
LOCALES = ("en", "de")
HELD_OUT = 1_000
WEIGHT = 3  # of the first locale


@exit_codes
def main() -> None:
    arguments = parse_arguments()
    quieten()
    tokenizer = load_tokenizer(LLM)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["DIVA_CACHE"] = f"{folder}/cache"
        for number, locale in enumerate(LOCALES):
            write_locale(folder / "cv" / locale, arguments.clips, number)
        given = [f"data.root={folder}/cv", "data.decoded_cache_gb=0", f"data.batch_size={BATCH}"]
        parts = [f"data.parts.{locale}={{corpus: common_voice, locale: {locale}}}" for locale in LOCALES]
        runs = {locale: ["data=common_voice", f"data.locale={locale}"] for locale in LOCALES}
        runs["mixture"] = ["data=mixture", *parts, f"data.parts.{LOCALES[0]}.weight={WEIGHT}"]
        rows = [
            {"data": of, **measure(check_overrides("train", [*overrides, *given]), folder, tokenizer)}
            for of, overrides in runs.items()
        ]
    text = report(rows)
    write_results("mixture", {"clips": arguments.clips, "batch": BATCH, "rows": rows}, text, arguments.into)
    print(text)


def write_locale(folder: Path, clips: int, seed: int) -> None:
    """A locale with so many training clips, whose files are empty: their lengths are listed, so none is opened."""
    (folder / "clips").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    sentences = [" ".join(f"word{n}" for n in rng.integers(0, 999, 8)) for _ in range(10_000)]
    with (folder / "clip_durations.tsv").open("w") as durations:
        durations.write("clip\tduration[ms]\n")
        for split, count in (("train", clips), ("dev", HELD_OUT)):
            milliseconds = rng.lognormal(8.5, 0.35, count).clip(1_000, 29_000).astype(int)
            with (folder / f"{split}.tsv").open("w") as tsv:
                tsv.write("client_id\tpath\tsentence\tage\tgender\taccents\n")
                for number in range(count):
                    name = f"common_voice_{split}_{number:08d}.mp3"
                    os.close(os.open(folder / "clips" / name, os.O_CREAT | os.O_WRONLY))
                    durations.write(f"{name}\t{milliseconds[number]}\n")
                    tsv.write(f"client{number // 20}\t{name}\t{sentences[number % 10_000]} {number}\t\t\t\n")


def measure(config: Any, folder: Path, tokenizer: Any) -> dict[str, Any]:
    data: SpeechDataModule = make_data(
        config.data, tokenizer, AdapterConfig(num_query_tokens=QUERIES), folder
    )
    opened = seconds(lambda: data.setup("fit"))
    loader = data.train_dataloader()
    planned = seconds(lambda: loader.sampler.plan(1))
    return {
        "clips": len(data.train),
        "open_seconds": opened,
        "epoch_seconds": planned,
        "peak_megabytes": round(peak_bytes(torch.device("cpu")) / 1e6),
    }


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return round(time.perf_counter() - started, 2)


def report(rows: list[dict[str, Any]]) -> str:
    columns = ("data", "clips", "to open, s", "order of an epoch, s", "peak so far, MB")
    names = ("data", "clips", "open_seconds", "epoch_seconds", "peak_megabytes")
    return "# Mixture\n\nOne process.\n\n" + markdown(
        columns, [[row[name] for name in names] for row in rows]
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.mixture", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=500_000, help="of each locale")
    parser.add_argument("--into", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
