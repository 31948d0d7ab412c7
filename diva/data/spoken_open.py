"""Speak the open corpus: `python -m diva.data.spoken_open`; see `diva.data.corpora.spoken.open_vocabulary`."""

import sys

from diva.data.corpora.spoken.open_vocabulary import main

if __name__ == "__main__":
    sys.exit(main())
