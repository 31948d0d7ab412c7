"""Corpora that are made here: sentences from templates, spoken by flite."""
