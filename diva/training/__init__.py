"""The training step, its losses, the Lightning module and callbacks, and the files that a run writes."""
