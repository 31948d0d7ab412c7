"""The effect of each single saving of the training step: with it and without it, in turns, in one process.

`python -m benchmarks.savings [--quick] [--data ROOT] [key=value ...]`, as `benchmarks.training`; of a batch of that
half is taken, for these are many steps. All other savings are as they are shipped.
"""

from dataclasses import replace
from typing import Any

from rich.console import Console

from benchmarks.bench import Bench, parse_arguments
from benchmarks.measure import Parts, in_turn, markdown, summary, write_results
from diva.command import exit_codes, quieten

Changes = dict[str, Any]  # of what a run does by default
# With the saving, and without it. Where the teacher's or the encoder's own work is changed, their
# tables are not kept on either side.
SAVINGS: dict[str, tuple[Changes, Changes]] = {
    "transcripts trimmed for the teacher": ({"teacher": "trimmed"}, {"teacher": "padded"}),
    "teacher states kept": ({"teacher": "kept"}, {"teacher": "trimmed"}),
    "prefix keys and values reused": ({}, {"reuses_prefix": False}),
    "encoder frames kept": ({"frames": "kept"}, {"frames": "bucket"}),
    "frozen parts in bfloat16": ({}, {"frozen_in_float32": True}),
    "LLM attention grouped, not eager": ({}, {"llm_attention": "eager"}),
    "LLM attention grouped, not sdpa": ({}, {"llm_attention": "sdpa"}),
    "adapter attention grouped, not sdpa": ({}, {"adapter_attention": "sdpa"}),
    "AdamW fused": ({}, {"fused_optimizer": False}),
}
NOT_SHIPPED: dict[str, tuple[Changes, Changes]] = {
    "last layer at the last position only": ({"last_position_only": True}, {}),
    "torch.compile of MLPs and norms": ({"compiled": True}, {}),
    "activation checkpointing, which saves memory": ({"recomputes": True}, {}),
}
CHANGES_THE_FRAMES: dict[str, tuple[Changes, Changes]] = {
    "encoder on the bucket's length, not 30 s": ({"frames": "bucket"}, {"frames": "full"}),
}
CHANGES_WHAT_IS_READ: dict[str, tuple[Changes, Changes]] = {
    "virtual tokens in proportion to the clip": ({"reads_in_proportion": True}, {}),
}
GROUPS = {
    "shipped": SAVINGS,
    "not shipped": NOT_SHIPPED,
    "changes the frames": CHANGES_THE_FRAMES,
    "changes what is read": CHANGES_WHAT_IS_READ,
}


@exit_codes
def main() -> None:
    arguments = parse_arguments("savings", __doc__)
    quieten()
    bench = Bench.open(arguments.data, arguments.clips, arguments.batch, arguments.overrides)
    rows = savings(bench, arguments.rounds, compiles=not arguments.quick)
    figures = {
        "clips_a_step": max(1, arguments.batch // 2),
        "queries": bench.ours.model.config.adapter.num_query_tokens,
        "tokens_per_second": round(bench.ours.tokens_per_second or 0.0, 2),
        "rows": rows,
    }
    text = report(figures)
    write_results("savings", figures, text, arguments.into)
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


def savings(bench: Bench, rounds: int, compiles: bool) -> list[dict[str, Any]]:
    """Each saving alone, on and off in turn, on half a batch; torch.compile, which is slow, where it `compiles`.

    Left out are those that a run of this config cannot have: no tables, no saving by them.
    """
    batch = bench.typical_batch()
    half = batch.micro_batches(max(1, len(batch) // 2))[0]
    rows = []
    for group, entries in GROUPS.items():
        for name, changes in entries.items():
            on, off = (replace(bench.kept, **change) for change in changes)
            if (on.compiled and not compiles) or not (bench.ours.can(on) and bench.ours.can(off)):
                continue
            steps = {
                key: lambda n, variant=variant: bench.our_step(half, variant, Parts())
                for key, variant in (("on", on), ("off", off))
            }
            found = {key: summary(values) for key, values in in_turn(steps, rounds).items()}
            ratio = round(found["off"]["median"] / found["on"]["median"], 3)
            rows.append({"saving": name, "group": group, **found, "speed_up": ratio})
    return rows


def report(figures: dict[str, Any]) -> str:
    """The table of savings.md."""
    rows = figures["rows"]
    worth = [(r["saving"], r["group"], r["on"]["median"], r["off"]["median"], r["speed_up"]) for r in rows]
    return (
        f"# Each saving alone\n\nA step of {figures['clips_a_step']} clips with and without it, all others as they are"
        f" shipped, in turns, {rows[0]['on']['n']} each. Of {figures['queries']} virtual tokens the LLM reads all, or"
        f" the last {figures['tokens_per_second']} a second: half of them for a clip of median length.\n\n"
    ) + markdown(("saving", "", "with, s", "without, s", "speed-up"), worth)


if __name__ == "__main__":
    main()
