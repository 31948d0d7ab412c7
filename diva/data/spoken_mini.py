"""Speak the mini corpus: `python -m diva.data.spoken_mini`; see `diva.data.corpora.spoken.corpus`."""

import sys

from diva.data.corpora.spoken.corpus import main

if __name__ == "__main__":
    sys.exit(main())
