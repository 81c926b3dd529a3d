"""Builds the dashboard as a W&B workspace with the package wandb-workspaces; only `save` needs the server."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.heads import DIMENSION_OF_HEAD
from safe_rlhf_video.pages.dashboard_spec import SECTIONS, X_NAME, X_TITLE, Panel, pattern


def build_workspace(project: str, entity: str, name: str) -> Any:
    """A workspace with the spec's sections and panels, not saved.

    Raises:
        ConfigError: wandb-workspaces is not installed, or takes no such name.
    """
    try:
        workspaces = import_module("wandb_workspaces.workspaces")
        blocks = import_module("wandb_workspaces.reports.v2")
    except ImportError as error:
        raise ConfigError(f"W&B workspaces need a further package ({error}); pip install wandb-workspaces") from error
    sections = [
        workspaces.Section(
            name=section.title,
            panels=[drawn for panel in section.panels for drawn in _draw(blocks, panel)],
            is_open=True,
        )
        for section in SECTIONS
    ]
    try:
        return workspaces.Workspace(entity=entity, project=project, name=name, sections=sections)
    except ValueError as error:
        raise ConfigError(f"--name: W&B takes no {name!r} ({' '.join(str(error).split())}); give another") from error


def _draw(blocks: Any, panel: Panel) -> list[Any]:
    """A panel's W&B panels: W&B draws one histogram at a time, and no reference line, which its title tells instead."""
    if panel.kind == "table":
        return [blocks.WeavePanelSummaryTable(table_name=metric) for metric in panel.metrics]
    if panel.kind == "histogram":
        return [
            blocks.LinePlot(title=f"{panel.title}: {metric}", x=X_NAME, y=[metric], title_x=X_TITLE, title_y=panel.unit)
            for metric in _each_head(panel)
        ]
    marks = "".join(f" ({mark.label})" for mark in panel.references if mark.value)
    return [
        blocks.LinePlot(
            title=panel.title + marks,
            x=X_NAME,
            metric_regex=pattern(panel.metrics),
            title_x=X_TITLE,
            title_y=panel.unit,
            log_y=panel.log_scale or None,
        )
    ]


def _each_head(panel: Panel) -> list[str]:
    """Of the labels any harm alone: 32 of them, two panels each, would bury the others."""
    names = [metric.replace("<label>", "harm_any") for metric in panel.metrics]
    return list(dict.fromkeys(name.replace("<head>", head) for name in names for head in DIMENSION_OF_HEAD))
