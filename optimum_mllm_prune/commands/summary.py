"""Tables on the screen."""

from collections.abc import Mapping
from pathlib import Path

from ..checkpoint import PruningReport
from ..planning import Account, PruningPlan
from ..planning.guide import Advice
from ..recovery.record import RecoveryRecord
from ..repair import Merge, Repair


def plan_table(plan: PruningPlan | Account) -> str:
    """What goes and what is left."""
    sizes = plan.parameters
    lines = [
        ("", "before", "after", "left"),
        _row("parameters", sizes["before"], sizes["after"]),
        _row("language backbone", sizes["backbone_before"], sizes["backbone_after"]),
    ]
    ratio = plan.ratio
    said = f"backbone removed: {100 * ratio['achieved']:.2f} % (asked for {100 * ratio['requested']:.2f} %)"
    changes = [f"config: {key} = {value}" for key, value in plan.config_changes.items() if _is_short(value)]
    return "\n".join([aligned(lines), said, *plan.notes, *changes])


def report_table(report: PruningReport, output: Path) -> str:
    """What was done, the proof, and where it lies."""
    proof, size = report.verification, report.size_bytes
    seconds = ", ".join(
        f"{stage} {value:.1f}"
        + (f" (floor {report.floor_seconds[stage]:.1f})" if stage in report.floor_seconds else "")
        for stage, value in report.timings_seconds.items()
    )
    tokens = {True: "equal", False: "other tokens where logits tie", None: "not compared"}
    return "\n".join(
        [
            f"weights: {size['before'] / 1e6:,.1f} MB -> {size['after'] / 1e6:,.1f} MB",
            f"verified in a fresh process ({proof.inputs}): largest logit difference "
            f"{proof.max_abs_logit_difference:g}, {len(proof.missing_keys)} missing and {len(proof.unexpected_keys)} "
            f"unexpected keys, generation with and without cache {tokens[proof.generated_tokens_equal]}",
            f"seconds: {seconds}; {_peaks(report.peak_memory_bytes)}",
            f"checkpoint: {output}",
        ]
    )


def _peaks(memory: Mapping[str, int]) -> str:
    gpu = f", {memory['gpu'] / 1e9:.2f} GB of GPU" if memory["gpu"] else ""
    return f"peak memory {memory['cpu'] / 1e9:.2f} GB{gpu}"


def aligned(rows: list[tuple[str, ...]]) -> str:
    """Rows of cells in columns, the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def _row(name: str, before: int, after: int) -> tuple[str, ...]:
    return name, f"{before:,}", f"{after:,}", f"{100 * after / before:.1f} %"


def _is_short(value: object) -> bool:
    return len(str(value)) < 60


def recovery_table(record: RecoveryRecord, output: Path) -> str:
    """What was trained, how the losses went, and where the result lies."""
    terms = [("", "first logged", "last logged")]
    terms += [(name, f"{record.first[name]:.4f}", f"{record.last[name]:.4f}") for name in record.last]
    parameters = f"{record.trained_parameters:,} of {record.all_parameters:,} parameters"
    rows = f"{record.rows:,} of {record.rows_available:,} rows, {record.epochs:g} passes in {record.steps:,} steps"
    return "\n".join(
        [
            aligned(terms) if record.last else "no loss was logged: lower --logging-steps to see it",
            f"trained: {record.train}, {parameters}, on {rows}",
            f"seconds of training: {record.seconds:.1f}",
            f"verified in a fresh process; checkpoint: {output}",
        ]
    )


def advice_text(advice: Advice, recover: str) -> str:
    """What the decision guide says, and why; `recover` is what was asked to be trained."""
    lines = [f"The guide: method '{advice.method}', importance '{advice.importance}'{_training(advice, recover)}."]
    if advice.retained is not None:
        lines.append(f"To expect: {advice.retained}.")
    lines += [f"  {sentence}" for sentence in advice.why]
    return "\n".join([*lines, *(f"Beware: {sentence}" for sentence in advice.warnings), ""])


def _training(advice: Advice, recover: str) -> str:
    if advice.recovery == "none":
        return ", no training"
    said = f", loss '{advice.loss}', learning rate {advice.learning_rate:g}, {100 * advice.fraction:g} % of the rows"
    if advice.recovery != recover:
        said += f" (training '{advice.recovery}' would do; '{recover}' was asked for)"
    return said


def repair_text(repair: Repair | Merge) -> str:
    """What was refitted or merged, what it gained, and what a reader should know."""
    if isinstance(repair, Merge):
        groups = (f"{', '.join(map(str, others))} into {into}" for into, others in repair.layers.items())
        return f"merged layers: {'; '.join(groups)}"
    told = repair.to_dict()
    maps = told["refitted"] + len(told["left_alone"])
    changed = f"repaired: {told['refitted']} of {maps} linear maps refitted on {repair.rows} rows"
    if told["refitted"]:
        changed += f"; error on held-out rows {told['error_before']:.3g} -> {told['error_after']:.3g}"
        if repair.loss_before is not None:
            changed += f", loss of their answers {repair.loss_before:.3g} -> {repair.loss_after:.3g} nats a token"
    return "\n".join([changed, *repair.notes])
