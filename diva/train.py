"""Train a DiVA: `python -m diva.train [experiment=NAME] [group=CHOICE ...] [key=value ...]`.

The command line is checked before slow imports (torch, Lightning, transformers). So the error for a misspelt key comes
within two seconds.
"""

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from diva.command import exit_codes, in_one_line
from diva.config import CONFIG_DIR, check_command_line
from diva.config.hydra_private import command_line, parse, quote, readable
from diva.config.targets import with_current_key
from diva.errors import UserError
from diva.sweeps.folder import Pruned
from diva.sweeps.local import end_with_sweep
from diva.training.distributed.ranks import end_with_first_rank

CONFIG_NAME = "train"


@exit_codes
def main() -> None:
    """Console entry point: check the command line, then let Hydra run it; -m is a sweep."""
    end_with_sweep()
    end_with_first_rank()
    sys.argv[1:] = [readable(with_current_key(argument)) for argument in sys.argv[1:]]
    given = command_line()
    if given.multirun and not (given.cfg or given.info or given.help or given.hydra_help):
        from diva.sweeps.sweep import sweep

        sys.exit(sweep(given.overrides, CONFIG_NAME, given.config_dir))
    sys.argv[1:] = resume_arguments(sys.argv[1:])
    check_shared_folder(sys.argv[1:])
    check_command_line(CONFIG_NAME)
    run_hydra()


@hydra.main(config_path=CONFIG_DIR, config_name=CONFIG_NAME, version_base="1.3")
def run_hydra(config: DictConfig) -> float | None:
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from diva.run import train

    try:
        with in_one_line():
            return train(config, Path(HydraConfig.get().runtime.output_dir))
    except Pruned:
        return None  # the reason is in the run's folder
    except SIGTERMException:
        sys.exit(
            128 + signal.SIGTERM
        )  # preempted: the checkpoint is written, resume=RUN_DIR continues the run
    return None


def check_shared_folder(arguments: list[str], environ: Mapping[str, str] = os.environ) -> None:
    """Raise UserError if several processes of one run would each name their own folder, by their own clock."""
    key = "WORLD_SIZE" if "TORCHELASTIC_RUN_ID" in environ else "SLURM_STEP_NUM_TASKS"
    processes = int(environ.get(key, 1))
    if processes > 1 and not any(a.startswith(("hydra.run.dir=", "resume=")) for a in arguments):
        raise UserError(
            f"{processes} processes were started together and need one folder: name it, hydra.run.dir=runs/NAME"
        )


def resume_arguments(arguments: list[str]) -> list[str]:
    """`resume=RUN_DIR ...` -> the overrides of that run, then the new ones, in the same folder."""
    given = next((argument for argument in arguments if argument.startswith("resume=")), "resume=null")
    folder = parse([given])[0].value()
    if folder is None:
        return arguments
    into = f"hydra.run.dir={quote(str(folder))}"
    if (
        into in arguments
    ):  # a DDP child gets the arguments of its parent, which this function has already changed
        return arguments
    run = Path(str(folder))
    if not (run / "overrides.yaml").is_file():
        raise UserError(f"resume={folder} is not a run: it has no overrides.yaml")
    from diva.training.checkpoints import check_resumable

    check_resumable(run / "checkpoints" / "last.ckpt")
    given_anew = {argument.partition("=")[0].lstrip("+~") for argument in arguments}
    stored = [with_current_key(str(override)) for override in OmegaConf.load(run / "overrides.yaml")]
    # A resumed sweep gives its runs the same overrides as before.

    if any(a.startswith("model.start_from=") and a not in stored for a in arguments):
        raise UserError(f"resume={folder} goes on with the run's own weights: leave out model.start_from")
    kept = [override for override in stored if override.partition("=")[0].lstrip("+~") not in given_anew]
    return [*kept, *arguments, into]


if __name__ == "__main__":
    main()
