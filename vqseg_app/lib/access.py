"""Which role each route needs at least, and which routes are closed until an option opens them: the one table.

The roles are those of MONAI Label 0.8.5, except where its routes ask for less than their own description says.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qs

from starlette.routing import Match, Route
from starlette.types import Scope

from vqseg.tokens import ROLES, Role

Closable = Literal["archives", "logs", "model_files", "reload", "slides"]
# What `--conf open_routes` takes, and why each is closed.
CLOSABLE: dict[Closable, str] = {
    "archives": "few bytes may hold much: up to upload_unpacked_gib are unpacked for a session",
    "logs": "the server's log may name patients, and `nvidia-smi` runs for each request",
    "model_files": "MONAI Label puts an uploaded model in place unchecked; versions are published by trainings",
    "reload": "MONAI Label builds the app anew beside the running one, and the next request may wait for ever",
    "slides": "this app segments volumes; the routes for whole slides check nothing",
}

Least = Role | Literal["nobody in particular"]
ANYONE: Least = "nobody in particular"
USER, ANNOTATOR, REVIEWER, ADMIN = "user", "annotator", "reviewer", "admin"


@dataclass(frozen=True)
class Rule:
    """Who may call `path` (as in a route) with `methods`; `closed` names what opens it."""

    methods: str
    path: str
    least: Least
    closed: Closable | None = None

    @functools.cached_property
    def _route(self) -> Route:
        return Route(self.path, lambda request: None, methods=self.methods.split())

    def fits(self, scope: Scope) -> bool:
        """Whether it is about this request: Starlette compares as it does to find the route that answers."""
        # Starlette lets GET answer HEAD, which not every route here does.
        return scope["method"] in self.methods.split() and self._route.matches(scope)[0] is Match.FULL

    def parameters(self, scope: Scope) -> dict[str, Any]:
        """What the path of a request says in the place of the names in `path`; empty when it is not about it."""
        return dict(self._route.matches(scope)[1].get("path_params", {}))

    def allows(self, role: Role | None) -> bool:
        """Whether a role is enough; none holds no role."""
        return self.least == ANYONE or (role is not None and ROLES.index(role) >= ROLES.index(self.least))


# The first that fits counts. A route that is not in here is refused where there are accounts.
RULES = (
    # Slicer asks before it has a token whether it needs one, and for one.
    Rule("GET", "/auth/", ANYONE),
    Rule("POST", "/auth/token", ANYONE),
    Rule("GET", "/auth/token/valid", USER),
    Rule("GET", "/", USER),
    Rule("GET HEAD", "/docs", USER),
    Rule("GET HEAD", "/openapi.json", USER),
    Rule("GET", "/favicon.ico", USER),
    Rule("GET HEAD", "/static/{path:path}", USER),
    Rule("GET", "/ohif/{path:path}", USER),
    Rule("GET POST", "/proxy/dicom/{path:path}", USER),
    Rule("GET", "/info/", USER),
    # Whoever starts the server anew, or sends clients to it, has no token; the answers say yes or no.
    Rule("GET", "/vqseg/health/live", ANYONE),
    Rule("GET", "/vqseg/health/ready", ANYONE),
    Rule("GET", "/vqseg/health", USER),
    Rule("GET", "/vqseg/metrics", USER),
    Rule("GET", "/vqseg/", USER),
    Rule("GET", "/vqseg/dashboard/{name}", USER),
    Rule("GET", "/vqseg/dashboard/plotly.min.js", USER),
    Rule("GET", "/vqseg/events", USER),
    Rule("GET", "/vqseg/training", USER),
    Rule("GET", "/vqseg/reports/{name}", USER),
    Rule("GET", "/vqseg/codebook", USER),
    Rule("GET", "/vqseg/studies/{image}/picture", USER),
    Rule("GET", "/vqseg/studies/{image}/codes", USER),
    Rule("GET", "/vqseg/ranking", USER),
    Rule("GET", "/vqseg/labels", USER),
    Rule("GET", "/vqseg/models", USER),
    Rule("GET", "/vqseg/models/{version}", USER),
    Rule("GET", "/vqseg/models/{version}/compare/{other}", USER),
    Rule("POST", "/vqseg/models/rollback", ADMIN),
    Rule("POST", "/vqseg/models/{version}/live", ADMIN),
    Rule("GET", "/vqseg/labels/{image}", USER),
    Rule("GET", "/vqseg/labels/{image}/{version}", USER),
    Rule("POST", "/vqseg/labels/{image}/{version}/restore", REVIEWER),
    Rule("POST", "/activelearning/{strategy}", USER),
    Rule("POST", "/infer/wsi/{model}", USER, closed="slides"),
    Rule("POST", "/infer/wsi_v2/{model}", USER, closed="slides"),
    Rule("POST", "/infer/{model}", USER),
    Rule("GET", "/batch/infer", USER),
    Rule("POST", "/batch/infer/{model}", ADMIN),
    Rule("DELETE", "/batch/infer", ADMIN),
    Rule("GET", "/train/", USER),
    Rule("POST DELETE", "/train/", ADMIN),
    Rule("POST", "/train/{model}", ADMIN),
    Rule("GET", "/scoring/", USER),
    Rule("POST DELETE", "/scoring/", ANNOTATOR),
    Rule("POST", "/scoring/{method}", ANNOTATOR),
    Rule("GET", "/datastore/", USER),
    Rule("PUT", "/datastore/", ANNOTATOR),
    Rule("DELETE", "/datastore/", ADMIN),
    Rule("GET HEAD", "/datastore/image", USER),
    Rule("PUT", "/datastore/image", ANNOTATOR),
    Rule("DELETE", "/datastore/image", ADMIN),
    Rule("GET", "/datastore/image/info", USER),
    Rule("PUT", "/datastore/image/info", ANNOTATOR),
    Rule("GET HEAD", "/datastore/label", USER),
    Rule("PUT", "/datastore/label", ANNOTATOR),
    Rule("DELETE", "/datastore/label", ADMIN),
    Rule("GET", "/datastore/label/info", USER),
    Rule("PUT", "/datastore/label/info", ANNOTATOR),
    Rule("PUT", "/datastore/updatelabelinfo", ANNOTATOR),
    Rule("GET", "/datastore/dataset", ANNOTATOR),
    Rule("PUT", "/session/", USER),
    Rule("GET DELETE", "/session/{session_id}", USER),
    Rule("GET", "/model/{model}", ADMIN),
    Rule("GET", "/model/info/{model}", ADMIN),
    Rule("PUT DELETE", "/model/{model}", ADMIN, closed="model_files"),
    Rule("GET", "/logs/", ADMIN, closed="logs"),
    Rule("GET", "/logs/gpu", ADMIN, closed="logs"),
    Rule("POST", "/reload", ADMIN, closed="reload"),
)


def rule_for(scope: Scope) -> Rule | None:
    """The rule about a request, none when no route is meant."""
    if (rule := next((rule for rule in RULES if rule.fits(scope)), None)) is not None:
        return rule
    # The application redirects to the address that differs in the last slash.
    path = scope["path"]
    other = {**scope, "path": path[:-1] if path.endswith("/") else f"{path}/"}
    return next((rule for rule in RULES if rule.fits(other)), None)


def closed_by(rule: Rule | None, scope: Scope) -> Closable | None:
    """What has to be opened for a request, none when nothing has."""
    if rule is not None and rule.path == "/session/" and _unpacks(scope):
        return "archives"
    return rule.closed if rule else None


def _unpacks(scope: Scope) -> bool:
    query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    return any(value.lower() not in ("false", "0") for value in query.get("uncompress", []))
