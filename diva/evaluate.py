"""Evaluate a system on a benchmark: `python -m diva.evaluate task=NAME system=RUN_DIR [key=value ...]`.

`system=` is a choice of configs/system, or a run directory, export or hub id of a DiVA. `predictions=FILE` scores
existing answers. Two baselines answer too: the LLM with the true transcript (ceiling), and Whisper with that LLM
(cascade).
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from diva.command import exit_codes, in_one_line
from diva.config import CONFIG_DIR, check_command_line
from diva.config.hydra_private import quote, readable

CONFIG_NAME = "evaluate"


@exit_codes
def main() -> None:
    """Console entry point: check the command line, then let Hydra run it."""
    sys.argv[1:] = map(readable, full_arguments(sys.argv[1:]))
    check_command_line(CONFIG_NAME)
    run_hydra()


@hydra.main(config_path=CONFIG_DIR, config_name=CONFIG_NAME, version_base="1.3")
def run_hydra(config: DictConfig) -> None:
    from diva.evaluation.evaluate import evaluate  # after the check: it imports torch

    with in_one_line():
        evaluate(config, HydraConfig.get().runtime.choices["system"])


def full_arguments(arguments: Sequence[str]) -> list[str]:
    """`system=PATH` -> `system=diva system.model=PATH`; `predictions=FILE` alone -> `system=predictions` as well."""
    full: list[str] = []
    for argument in arguments:
        value = argument.removeprefix("system=")
        if value != argument and ("/" in value or Path(value).is_dir()) and not _is_choice(value):
            full += ["system=diva", f"system.model={quote(value)}"]
        else:
            full.append(argument)
    keys = {argument.partition("=")[0] for argument in full}
    return [*full, "system=predictions"] if "predictions" in keys and "system" not in keys else full


def _is_choice(name: str) -> bool:
    return (Path(CONFIG_DIR) / "system" / f"{name}.yaml").is_file()


if __name__ == "__main__":
    main()
