"""One run over several devices: FSDP2, XLA, activation checkpointing, settings against hardware."""
