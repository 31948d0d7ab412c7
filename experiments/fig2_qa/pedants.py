"""PEDANTS scores for answers to questions: `python experiments/fig2_qa/pedants.py FOLDER ...`

Gives every samples.jsonl below the folders, of tasks that are scored by PEDANTS, a `score` for each answer that has
none. In an environment of its own, since qa-metrics pins an old numpy and scikit-learn and unpickles a classifier that
it fetches on first use; so this file needs nothing of diva.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def judge() -> Any:
    """The judge of qa-metrics, or the end with exit code 2 where it cannot be had."""
    try:
        from qa_metrics.pedant import PEDANT

        return PEDANT()
    except ImportError as error:
        stop(f"qa-metrics cannot be imported ({error}); install it as README.md beside this file says")
    except OSError as error:  # the package goes on in silence where its classifier could not be fetched
        stop(f"the classifier of qa-metrics is not there ({error}); its first use fetches it from GitHub")


def stop(problem: str) -> None:
    print(f"pedants: {problem}", file=sys.stderr)
    sys.exit(2)


def score(pedant: Any, answer: dict[str, Any]) -> float:
    """The best over the references, as the authors had it; an empty answer scores 0."""
    if not answer["prediction"]:
        return 0.0
    found = pedant.get_scores(list(answer["references"]), answer["prediction"], answer["transcript"])
    return max(float(value) for of_one in found.values() for value in of_one.values())


def waiting(folders: list[Path]) -> list[tuple[Path, list[dict[str, Any]]]]:
    """The files with answers that have no score, and all of their lines."""
    found = []
    for results in sorted({file for folder in folders for file in folder.rglob("results.json")}):
        figures = json.loads(results.read_text(encoding="utf-8"))["figures"]
        if not any(figure["metric"] == "pedants" for figure in figures):
            continue
        file = results.with_name("samples.jsonl")
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if any(_lacks_score(line) for line in lines):
            found.append((file, lines))
    return found


def _lacks_score(answer: dict[str, Any]) -> bool:
    return answer["prediction"] is not None and answer["score"] is None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, help="folders with results.json and samples.jsonl")
    files = waiting(parser.parse_args().folders)
    if not files:
        print("no answer waits for a score")
        return
    pedant = judge()
    for file, lines in files:
        for line in lines:
            if _lacks_score(line):
                line["score"] = score(pedant, line)
        unfinished = file.with_name("samples.jsonl.part")
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(file)
        print(f"{file}: {len(lines)} answers")


if __name__ == "__main__":
    main()
