"""Sessions whose ids are ids: nothing else leads to a folder.

Reasons (monailabel 0.8.5, `Sessions`): an id is joined to a path, so that `<id>/folder` is a session, too, whose
`meta.info` names any file of the machine as its image once somebody has uploaded one there; and one folder that holds
no session ends the removal of those that are over, for good.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from monailabel.utils.sessions import SessionInfo, Sessions

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class NamedSessions(Sessions):
    def get_session(self, session_id: str, update_ts: bool = True, fetch_cache: bool = True) -> SessionInfo | None:
        """None for what is no session, and for one that says that its image lies elsewhere."""
        if not _ID.fullmatch(session_id):
            return None
        found = super().get_session(session_id, update_ts, fetch_cache)
        return found if found and Path(found.image).parent == Path(self.store_path, session_id) else None

    def remove_expired(self) -> int:
        """Remove the sessions whose time is over, and what is left of others; returns how many there were."""
        folder = Path(self.store_path)
        ids = [place.name for place in folder.iterdir() if _ID.fullmatch(place.name)] if folder.is_dir() else []
        over = [session_id for session_id in ids if self._is_over(session_id)]
        for session_id in over:
            self.remove_session(session_id)
        return len(over)

    def _is_over(self, session_id: str) -> bool:
        found = self.get_session(session_id, update_ts=False, fetch_cache=False)
        return found is None or 0 < found.expiry < time.time() - found.last_access_ts
