"""Corpora become one manifest, the manifest becomes batches."""
