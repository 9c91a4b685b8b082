"""A report as a file: `<run>/reports/<UTC>.html`, one page that holds everything it shows and asks nobody."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import jinja2

from vqseg.files import new_file
from vqseg.report.content import read_content
from vqseg.report.listing import REPORTS, list_reports
from vqseg.training.status import add_event

__all__ = ["write_report"]

_KEPT = 20


def write_report(run: Path) -> str | None:
    """Write the report of the last training in `run` and return its name; none where there is nothing to report.

    The newest twenty are kept. Raises what files, drawings and damaged records may raise; the caller goes on without a
    report.
    """
    content = read_content(run)
    if content is None:
        return None
    name = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ.html")
    with new_file(run / REPORTS / name) as temporary:
        temporary.write_text(_template().render(content), encoding="utf-8")
    older = [known for known in list_reports(run) if known != name]
    for known in older[_KEPT - 1 :]:
        (run / REPORTS / known).unlink(missing_ok=True)
    add_event(run, "report", name=name)
    return name


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        # Names of studies and structures may hold anything.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["decimals"] = lambda value: "-" if value is None else f"{value:.3f}"
    return environment.get_template("page.html")
