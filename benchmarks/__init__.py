"""Benchmarks that compare diva with other algorithms for the same work, reimplemented on the same weights."""
