"""Draw a run's curves: `python -m diva.curves [RUN_DIR]`; see `diva.plots.curves`."""

from diva.plots.curves import main

if __name__ == "__main__":
    main()
