"""The folder of the shipped configs."""

from pathlib import Path

# In a clone `configs/` is next to the package. In an installed wheel it is inside the package.
_CANDIDATES = (Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs")
CONFIG_DIR = next((str(folder) for folder in _CANDIDATES if folder.is_dir()), str(_CANDIDATES[0]))
