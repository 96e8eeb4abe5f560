"""The report of a tuning run as HTML: for a notebook, and as one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from edgeinfer.budget import Budget
from edgeinfer.charts import Bar, Line, Point, bars, histogram, scatter
from edgeinfer.display import Table
from edgeinfer.svg import beside, escaped
from edgeinfer.tuning.advice import Advice
from edgeinfer.tuning.trial import Trial, described

__all__ = ["body", "page"]

_OTHER, _LOST, _PARETO, _BEST = 6, 1, 2, 0
_LEGEND = ((_BEST, "best"), (_PARETO, "Pareto set"), (_LOST, "breaks a limit"), (_OTHER, "other"))
_LAYERS = 30
_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font-family: system-ui, sans-serif; font-size: 14px; line-height: 1.45; max-width: 70em;
  margin: 2em auto; padding: 0 1.5em }}
table {{ font-size: 13px }}
</style></head><body>
"""


class _Shown(Protocol):
    """What is shown: a `TuningResult`, whose attributes these are."""

    @property
    def budget(self) -> Budget: ...
    @property
    def target(self) -> str: ...
    @property
    def where(self) -> str: ...
    @property
    def trials(self) -> tuple[Trial, ...]: ...
    @property
    def pareto(self) -> tuple[int, ...]: ...
    @property
    def chosen(self) -> int | None: ...
    @property
    def met(self) -> bool: ...
    @property
    def best(self) -> Trial: ...
    @property
    def baseline(self) -> Trial: ...
    @property
    def advice(self) -> tuple[Advice, ...]: ...
    @property
    def clock(self) -> str: ...
    @property
    def seconds(self) -> float: ...
    @property
    def layers(self) -> tuple[tuple[str, str, int, float | None], ...]: ...
    @property
    def layer_us(self) -> Mapping[str, float]: ...
    @property
    def notes(self) -> tuple[str, ...]: ...

    def table(self) -> Table:
        """Return one row a candidate."""
        ...


def page(result: _Shown) -> str:
    """Return one self-contained page."""
    title = escaped(f"Tuning for {result.target}")
    return f"{_HEAD.format(title=title)}<h1>{title}</h1>\n{body(result)}\n</body></html>\n"


def body(result: _Shown) -> str:
    """Return the report as an HTML fragment."""
    parts = [_verdict(result)]
    parts.append(beside(_latency_plot(result), _memory_plot(result), _latencies(result)))
    parts.append(beside(*_layers(result)))
    if result.met:
        parts.append(result.best.recipe.table().to_html())
    parts += [_tried(result), result.budget.table().to_html(), _environment(result)]
    return "\n".join(parts)


def _verdict(result: _Shown) -> str:
    if result.met:
        best, base = result.best, result.baseline
        text = f"The budget is met by candidate {described(best)}."
        if best.latency_p50_ms and base.latency_p50_ms:
            text += f" It takes {best.latency_p50_ms:.3f} ms, the original {base.latency_p50_ms:.3f} ms"
            text += f" ({base.latency_p50_ms / best.latency_p50_ms:.2f} times as fast)"
            text += f", and loses {best.drop:.4g} of the metric." if best.drop is not None else "."
        return f"<p><strong>{escaped(text)}</strong></p>"
    rows = [(f"{each.limit or each.what}", each.basis) for each in result.advice]
    return Table(
        title="No candidate keeps the budget",
        columns=("which limit, and what would help", "basis"),
        rows=rows,
    ).to_html()


def _kind(result: _Shown, trial: Trial) -> int:
    if trial.index == result.chosen:
        return _BEST
    if any(not violation.not_measured for violation in trial.violations):
        return _LOST  # also of the Pareto set, which is of all candidates: the dashed line has them
    return _PARETO if trial.index in result.pareto else _OTHER


def _label(trial: Trial) -> str:
    return f"{described(trial)}. {trial.lost or 'best'}"


def _name(result: _Shown) -> str:
    return "metric" if any(trial.metric is not None for trial in result.trials) else "SQNR in dB"


def _accuracy(result: _Shown, trial: Trial) -> float | None:
    """One axis has one unit: the metric where there is one."""
    value = trial.metric if _name(result) == "metric" else trial.sqnr_db
    return None if value is None or (_name(result) != "metric" and trial.index == 0) else value


def _mark(result: _Shown, trial: Trial) -> str:
    return "best" if trial.index == result.chosen else "float" if trial.index == 0 else ""


def _latency_plot(result: _Shown) -> str:
    points = {}
    for trial in result.trials:
        accuracy = _accuracy(result, trial)
        if trial.latency_p50_ms is not None and accuracy is not None:
            points[trial.index] = Point(
                x=trial.latency_p50_ms,
                y=accuracy,
                label=_label(trial),
                kind=_kind(result, trial),
                size=6.0 if trial.index == result.chosen else 4.0,
                mark=_mark(result, trial),
            )
    limit = result.budget.latency_p50_ms
    lines = [Line(label=f"limit {limit:.3g} ms", x=limit)] if limit is not None else []
    lines += _least_metric(result)
    front = [(points[index].x, points[index].y) for index in result.pareto if index in points]
    return scatter(
        sorted(points.values(), key=lambda point: -point.kind),  # the best one on top
        title="Accuracy against latency",
        x=f"p50 latency in ms ({result.clock} clock)",
        y=_name(result),
        path=front,
        lines=lines,
        legend=_LEGEND,
    )


def _least_metric(result: _Shown) -> list[Line]:
    allowed, base = result.budget.max_drop, result.baseline.metric
    if allowed is not None and base is not None:
        return [Line(label=f"at most {allowed:.3g} lost", y=base - allowed)]
    return []


def _memory_plot(result: _Shown) -> str:
    points = []
    for trial in result.trials:
        accuracy = _accuracy(result, trial)
        if trial.peak_bytes is not None and accuracy is not None:
            points.append(
                Point(
                    x=trial.peak_bytes / 1e6,
                    y=accuracy,
                    label=_label(trial),
                    kind=_kind(result, trial),
                    mark=_mark(result, trial),
                )
            )
    limit = result.budget.peak_bytes
    lines = [Line(label="limit", x=limit / 1e6)] if limit is not None else []
    return scatter(
        sorted(points, key=lambda point: -point.kind),  # the best one on top
        title="Accuracy against memory",
        x="peak memory of the process in MB",
        y=_name(result),
        lines=lines + _least_metric(result),
        legend=_LEGEND,
    )


def _latencies(result: _Shown) -> str:
    shown = result.best if result.met else result.baseline
    lines = [
        Line(label=f"p{percent}", x=value)
        for percent, value in ((50, _wall(shown, 50)), (99, _wall(shown, 99)))
        if value is not None
    ]
    others = result.baseline.latencies_ms if result.met and shown.index != 0 else ()
    what = "the best candidate (blue) and the original (grey)" if others else "the original"
    return histogram(
        shown.latencies_ms, title=f"Latency of {what}", x="ms on the wall", lines=lines, others=others
    )


def _wall(trial: Trial, percent: int) -> float | None:
    values = sorted(trial.latencies_ms)
    return values[min(len(values) - 1, int(percent / 100 * len(values)))] if values else None


def _layers(result: _Shown) -> list[str]:
    shown = result.best if result.met else result.baseline
    in_float = set(shown.float_layers)
    integer = shown.candidate.precision == "int8"
    ranked = sorted(result.layers, key=lambda layer: -layer[2])[:_LAYERS]
    kept = {layer[0] for layer in ranked}
    order = [layer for layer in result.layers if layer[0] in kept]

    def kind(node: str) -> int:
        return 0 if integer and node not in in_float else 1

    plain = shown.candidate.precision if not integer else "float32"
    legend = ((0, "int8"), (1, ", ".join([plain, *map(str, shown.candidate.narrow.values())])))
    found = [
        bars(
            [
                Bar(name=node, value=macs / 1e6, label=f"{node} ({op_type})", kind=kind(node))
                for node, op_type, macs, _ in order
            ],
            title="Multiply-accumulates of the original's layers",
            unit="M",
            legend=legend,
        )
    ]
    if result.layer_us:
        timed = sorted(result.layer_us.items(), key=lambda item: -item[1])[:_LAYERS]
        found.append(
            bars(
                [Bar(name=node or "(added by the runtime)", value=us, kind=kind(node)) for node, us in timed],
                title="Time of the layers that ran",
                unit="µs",
                legend=legend,
            )
        )
    noisy = sorted(
        (layer for layer in result.layers if layer[3] is not None), key=lambda layer: layer[3] or 0.0
    )
    if noisy:
        found.append(
            bars(
                [
                    Bar(name=node, value=sqnr_db or 0.0, label=f"{node} ({op_type})", kind=kind(node))
                    for node, op_type, _, sqnr_db in noisy[:_LAYERS]
                ],
                title="SQNR with this layer alone in int8: short bars are sensitive",
                unit="dB",
                legend=legend,
            )
        )
    return found


def _tried(result: _Shown) -> str:
    return result.table().to_html()


def _environment(result: _Shown) -> str:
    rows = [
        ("target", result.target),
        ("measured on", result.where),
        ("clock", result.clock),
        ("tuning took", f"{result.seconds:.0f} s"),
    ]
    return Table(title="Environment", columns=("", ""), rows=rows).to_html()
