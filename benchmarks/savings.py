"""What each saving of the training step is worth alone: with it and without it, in turns, in one process.

`python -m benchmarks.savings [--quick] [--data ROOT] [key=value ...]`, as `benchmarks.training`; of a batch of that
half is taken, for these are many steps. All other savings are as they are shipped.
"""

from dataclasses import replace
from typing import Any

from rich.console import Console

from benchmarks.bench import Bench, parse_arguments
from benchmarks.measure import Parts, in_turn, markdown, summary, write_results
from benchmarks.step import Variant
from diva.cli import exit_codes, quieten

KEPT = Variant()
# With the saving, and without it. Where the teacher's or the encoder's own work is changed, their
# tables are not kept on either side.
SAVINGS: dict[str, tuple[Variant, Variant]] = {
    "transcripts trimmed for the teacher": (
        replace(KEPT, teacher="trimmed"),
        replace(KEPT, teacher="padded"),
    ),
    "teacher states kept": (KEPT, replace(KEPT, teacher="trimmed")),
    "prefix keys and values reused": (KEPT, replace(KEPT, reuses_prefix=False)),
    "encoder frames kept": (KEPT, replace(KEPT, frames="bucket")),
    "frozen parts in bfloat16": (KEPT, replace(KEPT, frozen_in_float32=True)),
    "LLM attention grouped, not eager": (KEPT, replace(KEPT, llm_attention="eager")),
    "LLM attention grouped, not sdpa": (KEPT, replace(KEPT, llm_attention="sdpa")),
    "adapter attention grouped, not sdpa": (KEPT, replace(KEPT, adapter_attention="sdpa")),
    "AdamW fused": (KEPT, replace(KEPT, fused_optimizer=False)),
}
NOT_SHIPPED = {
    "last layer at the last position only": (replace(KEPT, last_position_only=True), KEPT),
    "torch.compile of MLPs and norms": (replace(KEPT, compiled=True), KEPT),
}
CHANGES_THE_FRAMES = {
    "encoder on the bucket's length, not 30 s": (
        replace(KEPT, frames="bucket"),
        replace(KEPT, frames="full"),
    )
}


GROUPS = {"shipped": SAVINGS, "not shipped": NOT_SHIPPED, "changes the frames": CHANGES_THE_FRAMES}


@exit_codes
def main() -> None:
    arguments = parse_arguments("savings", __doc__)
    quieten()
    bench = Bench.open(arguments.data, arguments.clips, arguments.batch, arguments.overrides)
    rows = savings(bench, arguments.rounds, compiles=not arguments.quick)
    text = report(rows, max(1, arguments.batch // 2))
    write_results(
        "savings", {"clips_a_step": max(1, arguments.batch // 2), "rows": rows}, text, arguments.into
    )
    Console(stderr=True).print(text, markup=False, highlight=False)


def savings(bench: Bench, rounds: int, compiles: bool) -> list[dict[str, Any]]:
    """Each saving alone, on and off in turn, on half a batch; torch.compile, which is slow, where it `compiles`."""
    half = bench.batches[0].micro_batches(max(1, len(bench.batches[0]) // 2))[0]
    rows = []
    for group, entries in GROUPS.items():
        for name, (on, off) in entries.items():
            if on.compiled and not compiles:
                continue
            steps = {
                key: lambda n, variant=variant: bench.our_step(half, variant, Parts())
                for key, variant in (("on", on), ("off", off))
            }
            found = {key: summary(values) for key, values in in_turn(steps, rounds).items()}
            ratio = round(found["off"]["median"] / found["on"]["median"], 3)
            rows.append({"saving": name, "group": group, **found, "speed_up": ratio})
    return rows


def report(rows: list[dict[str, Any]], clips: int) -> str:
    """The table of savings.md."""
    worth = [(r["saving"], r["group"], r["on"]["median"], r["off"]["median"], r["speed_up"]) for r in rows]
    return (
        f"# Each saving alone\n\nA step of {clips} clips with and without it, all others as they are shipped,"
        f" in turns, {rows[0]['on']['n']} each.\n\n"
    ) + markdown(("saving", "", "with, s", "without, s", "speed-up"), worth)


if __name__ == "__main__":
    main()
