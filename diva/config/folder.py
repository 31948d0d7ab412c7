"""The folder of the shipped configs, and its files as they are written."""

from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

# In a clone `configs/` is next to the package. In an installed wheel it is inside the package.
_CANDIDATES = (Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs")
CONFIG_DIR = next((str(folder) for folder in _CANDIDATES if folder.is_dir()), str(_CANDIDATES[0]))


@cache  # all of them are read for each composed config
def read_config(file: Path) -> dict[str, Any]:
    """A file without its interpolations resolved, `defaults` included. Empty if it is not a mapping."""
    raw = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    return {str(key): value for key, value in raw.items()} if isinstance(raw, dict) else {}
