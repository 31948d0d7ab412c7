"""Data: a corpus is read into a manifest, and the manifest is loaded in batches."""
