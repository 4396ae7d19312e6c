"""Tables of the scenes benchmark, for a terminal of 130 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence

from coarse2fine.bench.results import (
    DEFAULT,
    EXHAUSTIVE,
    METHODS,
    RECALLS,
    SAMPLE,
    AuditRun,
    SceneFacts,
    audit_name,
    best_rival,
    scene_figures,
)

Figures = Mapping[str, float]

WIDTH = 128
_MOST_SCENES = 6
_BUDGETS = "{:<9}" + "{:>14}" * 7
_GROUP = "{:>11} {:>5} {:>6} {:>6} {:>6}"
_FIXED = "{:<11} {:>13} {:>13} {:>13} {:>6} {:>6} {:>6} {:>7}   {:<22} {:>6}"
_MEASURED = "{:<11} {:>13} {:>13} {:>13} {:>6} {:>6} {:>6} {:>14}"
_AUDIT = "{:<11} {:>5} {:>13} {:>6} {:>14} {:>8} {:>17} {:>9} {:>9}"
_REFERENCES = {
    "exhaustive": "of the exhaustive pass's finds",
    "labels": "of the labelled objects that the exhaustive pass finds",
}
_EXPLAINED = (
    "Total: multiply-adds with scan and halos, as a share of the exhaustive pass's; "
    "fewer: one over that; cells: share refined; chunks: share of the stored chunks of full resolution that windows "
    "with their halos touch; sec: wall-clock time, estimated (~) from the measured runs' seconds per multiply-add. All "
    "but the measured runs are look-ups of the exhaustive pass's answer in the cells chosen, which refining them would "
    "give too. Rivals use the same refine net, in windows of 2 cells or the model's, whichever is cheaper; "
    "their maps count as free. If a method does not reach a recall, or only for more, the exhaustive pass counts. "
    "Mean +- sd over scenes and seeds."
)


def lines(figures: Figures, facts: Sequence[SceneFacts], audits: Sequence[AuditRun]) -> list[str]:
    """All tables and their explanation."""
    parts = [
        _scenes(facts),
        _measured(figures),
        _budgets(figures),
        *(_least(figures, reference) for reference in _REFERENCES),
        _fixed(figures),
        _audited(figures, audits),
        textwrap.wrap(_EXPLAINED, WIDTH),
    ]
    return [line for part in parts if part for line in (*part, "")][:-1]


def percent(value: float, sd: float | None = None) -> str:
    """A share as a percentage of about three digits."""
    digits = 1 if value >= 0.0995 else 2
    spread = "" if sd is None else f"+-{100 * sd:.{digits}f}"
    return f"{100 * value:.{digits}f}{spread}%"


def _share(figures: Figures, name: str, *, spread: bool = True) -> str:
    if name not in figures:
        return "-"
    return percent(figures[name], figures.get(f"{name}_sd") if spread else None)


def _times(figures: Figures, name: str) -> str:
    if name not in figures:
        return "-"
    return f"{figures[name]:.1f}x" if figures[name] < 99.5 else f"{figures[name]:.0f}x"


def _seconds(figures: Figures, name: str) -> str:
    for key, mark in ((f"{name}/seconds", ""), (f"{name}/seconds_estimated", "~")):
        if key in figures:
            return f"{mark}{figures[key]:.2f}" if figures[key] < 99.5 else f"{mark}{figures[key]:.0f}"
    return "-"


def _scenes(facts: Sequence[SceneFacts]) -> list[str]:
    """Properties of each scene, or their mean if there are more than `_MOST_SCENES`; means over seeds."""
    names = list(dict.fromkeys(f.scene for f in facts))
    groups = {name: [f for f in facts if f.scene == name] for name in names}
    if len(names) > _MOST_SCENES:
        groups = {f"{len(names)} scenes, in the mean": list(facts)}
    texts = [f"{name}: {_described(scene_figures(mine))}" for name, mine in groups.items()]
    return [line for text in texts for line in textwrap.wrap(text, WIDTH, subsequent_indent="  ")]


def _described(figures: Figures) -> str:
    def share(measure: str) -> str:
        return _share(figures, f"scenes/{measure}", spread=False)

    size, labelled, finds = (figures[f"scenes/{m}"] for m in ("megapixels", "labelled", "finds"))
    return (
        f"{size:,.1f} Mpx; {labelled:,.0f} labelled objects, {share('label_recall')} found by the exhaustive pass; "
        f"its finds: {finds:,.0f}, {share('label_precision')} of them labelled; the 16-px cells covered: "
        f"{share('labels_cover')} (labels), {share('finds_cover')} (finds)"
    )


def _measured(figures: Figures) -> list[str]:
    head = ("measured", "total", "found", "labels", "cells", "chunks", "scan", "seconds")
    table = [_MEASURED.format(*head)]
    for key, name in ((DEFAULT, "default"), (EXHAUSTIVE, "exhaustive")):
        row = f"ours/{key}"
        seconds = figures.get(f"{row}/seconds", float("nan"))
        spread = figures.get(f"{row}/seconds_sd")
        table.append(
            _MEASURED.format(
                name,
                _share(figures, f"{row}/share"),
                _share(figures, f"{row}/recall_exhaustive"),
                _share(figures, f"{row}/recall_labels"),
                _share(figures, f"{row}/refined", spread=False),
                _share(figures, f"{row}/chunks", spread=False),
                _share(figures, "scenes/scan_share", spread=False) if key == DEFAULT else "-",
                f"{seconds:.2f}" + ("" if spread is None else f" +- {spread:.2f}"),
            )
        )
    gains = (f"ours/{DEFAULT}/times_fewer_macs", f"ours/{DEFAULT}/times_faster")
    macs, fast = (_times(figures, name) for name in gains)
    steps = (f"{step} {figures[f'scenes/{step}_seconds']:.2f}" for step in ("scan", "choose", "refine", "conclude"))
    return [
        *table,
        f"the default against the exhaustive pass, halos on both sides: {macs} fewer multiply-adds, {fast} faster",
        f"the default's seconds: {', '.join(steps)}{_decoded(figures)}",
    ]


def _decoded(figures: Figures) -> str:
    """Chunks decoded per stored chunk, if the image is stored in chunks."""
    if "scenes/chunks_decoded" not in figures:
        return ""
    return f"; it decoded {figures['scenes/chunks_decoded']:.2f} chunks for each stored at full resolution"


def _budgets(figures: Figures) -> list[str]:
    """Recall of the exhaustive pass's finds at a share of its cost."""
    keys = sorted({name.split("/")[1] for name in figures if name.split("/")[1].replace(".", "").isdigit()})
    keys = [key for key in keys if key != EXHAUSTIVE]
    if not keys:
        return []
    table = ["recall of the exhaustive pass's finds at a share of its multiply-adds"]
    table.append(_row(_BUDGETS, "method", [f"{float(key):.0%}" for key in keys]))
    for method in _present(figures, keys):
        cells = [_share(figures, f"{method}/{key}/recall_exhaustive") for key in keys]
        table.append(_row(_BUDGETS, method, cells))
    return table


def _least(figures: Figures, reference: str) -> list[str]:
    keys = [f"{reference}@{recall:g}" for recall in RECALLS]
    names = _present(figures, keys)
    if not names:
        return []
    title = f"least cost of a recall {_REFERENCES[reference]} (swept on the test scene itself: a best case)"
    head = _GROUP.format("total", "fewer", "cells", "chunks", "sec")
    above = [f"{f' {recall:.0%} ':-^{len(head)}}" for recall in RECALLS]
    table = [title, "  ".join([" " * 8, *above]), "  ".join([f"{'method':<8}", *[head] * len(keys)])]
    for method in names:
        groups = []
        for key in keys:
            row = f"{method}/{key}"
            shares = [_share(figures, f"{row}/{m}", spread=False) for m in ("refined", "chunks")]
            times = _times(figures, f"{row}/times_fewer")
            groups.append(_GROUP.format(_share(figures, f"{row}/share"), times, *shares, _seconds(figures, row)))
        table.append("  ".join([f"{method:<8}", *groups]))
    return table


def _fixed(figures: Figures) -> list[str]:
    keys = sorted({name.split("/")[1] for name in figures if name.startswith("ours/fixed@")})
    if not keys:
        return []
    table = [
        "thresholds calibrated for a recall in fitting, not on the test scene; last, the cheapest trivial rival",
        _FIXED.format(
            *("set for", "found", "labels", "total", "fewer", "cells", "chunks", "sec", "best rival", "ratio")
        ),
    ]
    for key in [*keys, DEFAULT]:
        row = f"ours/{key}"
        rival = best_rival(figures, key)
        total = figures.get(f"best_rival/{key}/share")
        table.append(
            _FIXED.format(
                key.partition("@")[2] or key,
                *(_share(figures, f"{row}/{m}") for m in ("recall_exhaustive", "recall_labels", "share")),
                _times(figures, f"{row}/times_fewer"),
                *(_share(figures, f"{row}/{m}", spread=False) for m in ("refined", "chunks")),
                _seconds(figures, row),
                "-" if total is None else f"{_share(figures, f'{rival}/{key}/share')} {rival}",
                "-" if total is None else f"{total / figures[f'{row}/share']:.2f}x",
            )
        )
    return table


def _audited(figures: Figures, audits: Sequence[AuditRun]) -> list[str]:
    if not audits:
        return []
    head = ("audited", "runs", "total", "fewer", "true recall", "least", "stated", "reported", "held")
    table = ["audited recall (the default's windows first; confidence 95 %)", _AUDIT.format(*head)]
    for kind in dict.fromkeys(a.kind for a in audits):
        name = audit_name(kind)
        stated = f"at least {_share(figures, f'{name}/least_stated', spread=False)}"
        if kind == SAMPLE:
            stated = "{} to {}".format(
                *(_share(figures, f"{name}/{m}_stated", spread=False) for m in ("least", "most"))
            )
        table.append(
            _AUDIT.format(
                "1 % sample" if kind == SAMPLE else f"{float(kind):.0%}",
                f"{figures[f'{name}/runs']:.0f}",
                _share(figures, f"{name}/share"),
                f"{1 / figures[f'{name}/share']:.1f}x",
                _share(figures, f"{name}/recall"),
                _share(figures, f"{name}/recall_least"),
                stated if f"{name}/least_stated" in figures else "-",
                f"{figures[f'{name}/reported']:.0%}",
                f"{figures[f'{name}/held']:.1%}" if f"{name}/held" in figures else "-",
            )
        )
    return [*table, "least: of all runs; reported: runs that stated bounds; held: share of these whose bounds held"]


def _present(figures: Figures, keys: Iterable[str]) -> list[str]:
    return [m for m in METHODS if any(f"{m}/{key}/share" in figures for key in keys)]


def _row(layout: str, first: str, cells: Sequence[str]) -> str:
    return layout.format(first, *cells, *[""] * (layout.count("{") - 1 - len(cells))).rstrip()
