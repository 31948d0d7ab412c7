"""Bytes to waveforms to log-mel, and the arithmetic of frames."""
