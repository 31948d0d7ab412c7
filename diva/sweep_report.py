"""Report on a sweep: `python -m diva.sweep_report DIR`; see `diva.sweeps.report`."""

from diva.sweeps.report import main

if __name__ == "__main__":
    main()
