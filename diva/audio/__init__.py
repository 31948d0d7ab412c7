"""Decoding to waveforms (`decoding`), waveforms to log-mel (`log_mel`), and the arithmetic of frames (`frames`)."""
