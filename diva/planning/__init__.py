"""Memory and duration of a run, estimated before it starts."""
