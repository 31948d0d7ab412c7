"""Formats of browsers and phones that libsndfile does not read. PyAV decodes them if it is installed."""

import io
from typing import BinaryIO

import numpy as np
import soundfile

from ..errors import AudioFault

# Longest audio that is decoded. Hours of audio would fill the memory, and no task has such a clip.
_MAX_SECONDS = 3600
# Allowed difference to the container's duration, which is rounded and includes silence that encoders add.
_SLACK_SECONDS = 0.5


def foreign_format(head: bytes) -> str | None:
    """The name of such a format, by the first 16 bytes of a file; None for other formats."""
    if head[4:8] == b"ftyp":
        return "MPEG-4 (m4a, mp4)"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "WebM or Matroska"
    if head[:1] == b"\xff" and head[1:2] in (b"\xf0", b"\xf1", b"\xf8", b"\xf9"):
        return "AAC"
    if head.startswith((b"#!AMR", b"\x30\x26\xb2\x75")):
        return "AMR" if head[:1] == b"#" else "WMA"
    return None


def decode_foreign(raw: BinaryIO, kind: str, name: str, longest: float) -> BinaryIO:
    """Decode to a wav. Raises AudioFault (unknown format without PyAV, damaged audio, ends early, too long)."""
    try:
        import av
    except ImportError:
        raise AudioFault(
            "unknown format",
            f"{name} is {kind}, which only PyAV reads: pip install av; or convert it: ffmpeg -i FILE FILE.wav",
        ) from None
    raw.seek(0)
    limit = min(longest, _MAX_SECONDS)
    blocks: list[np.ndarray] = []
    try:
        with av.open(raw, mode="r") as container:
            if not container.streams.audio:
                raise AudioFault("damaged audio", f"{name} has no sound")
            stream = container.streams.audio[0]
            rate, promised = stream.rate, (container.duration or 0) / av.time_base
            resampler = av.AudioResampler(format="flt", layout=stream.layout, rate=rate)
            for frame in container.decode(stream):
                for part in resampler.resample(frame):
                    blocks.append(part.to_ndarray().reshape(-1, part.layout.nb_channels))
                if frame.time is not None and frame.time > limit:
                    raise AudioFault("too long", f"{name} lasts more than the limit of {limit:g} s")
    except av.FFmpegError as error:
        raise AudioFault("damaged audio", f"{name}: {error}") from error
    samples = np.concatenate(blocks) if blocks else np.zeros((0, 1), dtype=np.float32)
    if len(samples) / rate < promised - _SLACK_SECONDS:
        raise AudioFault(
            "ends early", f"{name} lasts {len(samples) / rate:.1f} s, its header says {promised:.1f} s"
        )
    wav = io.BytesIO()
    soundfile.write(wav, samples, rate, format="WAV", subtype="FLOAT")
    wav.seek(0)
    return wav
