"""Find frozen models: `python -m diva.pretrained NAME ...`; see `diva.models.pretrained`."""

import sys

from diva.command import exit_codes
from diva.models.pretrained import main

if __name__ == "__main__":
    exit_codes(main)(sys.argv[1:])
