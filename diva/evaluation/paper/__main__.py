"""`python -m diva.evaluation.paper [experiments]`; see `diva.evaluation.paper.rebuild`."""

from diva.evaluation.paper.rebuild import main

if __name__ == "__main__":
    main()
