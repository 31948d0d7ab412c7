"""How many words a corpus has."""

import pyarrow as pa
import pyarrow.compute as pc


def distinct_words(texts: pa.ChunkedArray) -> int:
    """Number of distinct words in texts, string [n]: runs of letters, digits, apostrophes and hyphens in lower case."""
    words = pc.list_flatten(pc.split_pattern_regex(pc.utf8_lower(texts), r"[^\p{L}\p{M}\p{N}'’-]+"))
    return pc.count_distinct(words.filter(pc.match_substring_regex(words, r"[\p{L}\p{N}]"))).as_py()
