"""Compare the header of an audio file with its contents, for the containers whose header libsndfile trusts.

If an mp3 has no Xing header, libsndfile computes its length from the bitrate of the first frame, and reads no more than
that. If a file is shorter than its header says, libsndfile reports nothing (libsndfile 1.2.2: src/mpeg_decode.c,
src/sndfile.c).
"""

import io
import re
import struct
from dataclasses import dataclass
from typing import BinaryIO

from ..errors import AudioFault

# Programs that write into a pipe do not know the size. They write 0, or slightly less than 2^31 or 2^32.
_UNKNOWN_SIZE = 0x7FFF_0000
# Some editors write a few bytes after the samples that are not a chunk.
_STRAY_BYTES = 1024

# Bitrates of layer III in kbit/s by the header's index, for MPEG-1 and for MPEG-2 and 2.5 (ISO 11172-3, 13818-3).
_KILOBITS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KILOBITS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_MPEG_1 = 3
# Bitrate index of a Xing frame. It needs about 160 bytes, and at this index the frame is large enough at every rate.
_XING_BITRATE = 8
_XING_FRAMES, _XING_BYTES = 1, 2  # its flags: the number of frames, and of bytes, follow
_TAGS = (b"TAG", b"APETAGEX", b"LYRICS", b"ID3", b"3DI")


@dataclass(frozen=True)
class _Mp3Frame:
    """The header of one frame of layer III."""

    version: int
    rate: int
    size: int  # bytes, header included
    mono: bool

    @property
    def samples(self) -> int:
        return 1152 if self.version == _MPEG_1 else 576

    @property
    def xing_at(self) -> int:
        """The position of a Xing header in the frame: after the side information."""
        return 4 + ((17 if self.mono else 32) if self.version == _MPEG_1 else (9 if self.mono else 17))


def _mp3_frame(data: bytes, at: int) -> _Mp3Frame | None:
    """The frame whose header is at position `at`; None if there is none."""
    if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] & 0xE6 != 0xE2:
        return None
    version, bitrate, rate = data[at + 1] >> 3 & 3, data[at + 2] >> 4, data[at + 2] >> 2 & 3
    if version not in _RATES or not 0 < bitrate < 15 or rate == 3:
        return None
    hertz = _RATES[version][rate]
    kilobits = (_KILOBITS_1 if version == _MPEG_1 else _KILOBITS_2)[bitrate]
    size = (144_000 if version == _MPEG_1 else 72_000) * kilobits // hertz + (data[at + 2] >> 1 & 1)
    return _Mp3Frame(version, hertz, size, data[at + 3] >> 6 == 3)


def whole_mp3(data: bytes, name: str) -> bytes | None:
    """The bytes of an mp3, corrected so that libsndfile reads all of it; None if it is not layer III.

    All frames are counted. If the Xing header is missing or has another number, a correct one is added.
    Raises AudioFault if the file has fewer frames than its header says, or ends within a frame.
    """
    start = _mp3_start(data)
    first = _mp3_frame(data, start)
    if first is None:
        return None
    begin, promised = _xing(data, start, first)
    frames, end = _count_mp3_frames(data, begin, first)
    seconds = first.samples / first.rate
    if promised is not None and frames < promised - 1:
        raise _ends_early(name, frames * seconds, promised * seconds)
    if end is None:
        raise AudioFault("ends early", f"{name} breaks off within a frame, after {frames * seconds:.1f} s")
    if promised is not None and frames <= promised + 1:
        return data
    return _xing_frame(data, start, frames, end - begin) + data[begin:end]


def _mp3_start(data: bytes) -> int:
    """The position of the first frame: after ID3 tags, where two frames follow each other."""
    start = 0
    while data[start : start + 3] == b"ID3" and len(data) >= start + 10:
        size = data[start + 6 : start + 10]
        footer = 10 if data[start + 5] & 0x10 else 0
        start += 10 + footer + (size[0] << 21 | size[1] << 14 | size[2] << 7 | size[3])
    return _resync(data, start)


def _resync(data: bytes, at: int) -> int:
    """The next position of a frame that another frame or the end of the file follows; otherwise the end."""
    while (at := data.find(b"\xff", at)) >= 0:
        frame = _mp3_frame(data, at)
        if frame and (at + frame.size >= len(data) or _mp3_frame(data, at + frame.size)):
            return at
        at += 1
    return len(data)


def _xing(data: bytes, start: int, first: _Mp3Frame) -> tuple[int, int | None]:
    """The position of the first frame with sound, and the number of frames in the Xing header (None: no header)."""
    at = start + first.xing_at
    if data[at : at + 4] not in (b"Xing", b"Info"):
        return start, None
    flags = int.from_bytes(data[at + 4 : at + 8])
    promised = int.from_bytes(data[at + 8 : at + 12]) if flags & _XING_FRAMES else 0
    return start + first.size, promised or None


def _count_mp3_frames(data: bytes, at: int, first: _Mp3Frame) -> tuple[int, int | None]:
    """The number of complete frames from position `at`, and where they end; None if the last frame is incomplete."""
    count = 0
    while at < len(data):
        frame = _mp3_frame(data, at)
        if frame is None or frame.rate != first.rate:
            if data[at : at + 8].startswith(_TAGS) or (found := _resync(data, at + 1)) == len(data):
                # A tag, other bytes, or an incomplete header of 4 bytes.
                return count, None if len(data) - at < 4 and data[at] == 0xFF else at
            at = found
        elif at + frame.size > len(data):
            return count, None
        else:
            count, at = count + 1, at + frame.size
    return count, at


def _xing_frame(data: bytes, start: int, frames: int, size: int) -> bytes:
    """A silent frame in the format of the first one. Its Xing header has the number of frames that follow."""
    header = bytearray(data[start : start + 4])
    header[1] |= 1  # no checksum
    header[2] = _XING_BITRATE << 4 | header[2] & 0x0C
    frame = _mp3_frame(bytes(header), 0)
    assert frame is not None
    xing = struct.pack(">4sIII", b"Xing", _XING_FRAMES | _XING_BYTES, frames, size + frame.size)
    return (bytes(header).ljust(frame.xing_at, b"\0") + xing).ljust(frame.size, b"\0")


def whole_wav(file: BinaryIO, size: int, name: str) -> BinaryIO:
    """A wav of `size` bytes, corrected so that libsndfile reads all of it. A size of 0 in its header is replaced.

    Raises AudioFault if many bytes that are not a chunk follow the samples, such as a second file.
    """
    at = 12  # after "RIFF", a size, "WAVE"
    while at + 8 <= size:
        kind, length = struct.unpack("<4sI", _bytes_at(file, at, 8))
        end = at + 8 + length
        rest = size - end
        if kind != b"data":
            at = end + length % 2
        elif length == 0 and rest > 0 and not _is_chunk(_bytes_at(file, end, 4)):
            whole = _bytes_at(file, 0, size)
            file = io.BytesIO(whole[: at + 4] + struct.pack("<I", min(rest, 0xFFFF_FFFF)) + whole[at + 8 :])
            break
        elif rest > _STRAY_BYTES and not any(
            _is_chunk(_bytes_at(file, end + odd, 4)) for odd in range(1 + length % 2)
        ):
            raise AudioFault(
                "damaged audio",
                f"{name}: {rest} bytes follow the {length} of its samples and are no part of it",
            )
        else:
            break
    file.seek(0)
    return file


def _bytes_at(file: BinaryIO, at: int, length: int) -> bytes:
    file.seek(at)
    return file.read(length)


def _is_chunk(name: bytes) -> bool:
    """Whether four bytes can be the name of a wav chunk: letters, but not the start of another file."""
    return len(name) == 4 and all(32 <= letter < 127 for letter in name) and name not in (b"RIFF", b"RF64")


def check_ogg(data: bytes, name: str) -> None:
    """Raise AudioFault if the last page of an Ogg file (RFC 3533) is incomplete, or a second stream follows."""
    at, ended = 0, False
    while data[at : at + 4] == b"OggS":
        segments = data[at + 27 : at + 27 + data[at + 26]] if at + 27 <= len(data) else b""
        end = at + 27 + len(segments) + sum(segments)
        if at + 27 > len(data) or len(segments) < data[at + 26] or end > len(data):
            raise AudioFault("ends early", f"{name} breaks off within a page of Ogg, at byte {len(data)}")
        if ended:
            raise AudioFault("damaged audio", f"{name} is several Ogg streams, one behind the other")
        ended, at = bool(data[at + 5] & 4), end
    if not ended and 0 < len(data) - at < 4:
        raise AudioFault("ends early", f"{name} breaks off within a page of Ogg, at byte {len(data)}")


# Lines of libsndfile's log about a file that is shorter than its header says.
_CUT_SIZE = re.compile(r"^ *(?:data|SSND|Data Size) *: *(\d+) \(should be (\d+)\)", re.M)
_CUT_RIFF = re.compile(r"^ *(?:riff|Riff size) *: *(\d+) \(should be (\d+)\)", re.M)
_CUT_FRAMES = re.compile(
    r"^\*\*\* Calculated frame count (\d+) does not match value from 'ds64' chunk of (\d+)", re.M
)


def check_log(log: str, container: str, name: str) -> None:
    """Raise AudioFault if libsndfile's log reports that the file is shorter than its header says."""
    for pattern in (_CUT_SIZE, *((_CUT_RIFF,) if container == "W64" else ())):
        for promised, found in pattern.findall(log):
            if int(found) < int(promised) < _UNKNOWN_SIZE:
                raise AudioFault("ends early", f"{name} has {found} bytes, its header says {promised}")
    for found, promised in _CUT_FRAMES.findall(log):
        if int(found) < int(promised):
            raise AudioFault("ends early", f"{name} has {found} samples, its header says {promised}")


def _ends_early(name: str, seconds: float, promised: float) -> AudioFault:
    return AudioFault("ends early", f"{name} lasts {seconds:.1f} s, its header says {promised:.1f} s")
