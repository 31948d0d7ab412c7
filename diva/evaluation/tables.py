"""Tables from results: `python -m diva.evaluation.tables FOLDER ...`; see `diva.evaluation.reporting.tables`."""

from diva.evaluation.reporting.tables import main

if __name__ == "__main__":
    main()
