"""Who sends a request: an account of the file (`--conf accounts FILE`) or of an identity provider.

Roles are those of MONAI Label 0.8.5. Its own check asks for one exact role and expects a person to hold all the lower
ones too; here a role includes them.
"""

from __future__ import annotations

import base64
import binascii
import logging
from pathlib import Path

from anyio import CapacityLimiter, to_thread
from fastapi import Request
from monailabel.config import settings
from monailabel.endpoints.user.auth import DEFAULT_USER, User

from vqseg.tokens import PREFIX, ROLES, Account, AccountFile, Role

from .oidc import Identity, Realm

logger = logging.getLogger(__name__)
ROLE_NAMES: dict[Role, str] = {
    "user": settings.MONAI_LABEL_AUTH_ROLE_USER,
    "annotator": settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR,
    "reviewer": settings.MONAI_LABEL_AUTH_ROLE_REVIEWER,
    "admin": settings.MONAI_LABEL_AUTH_ROLE_ADMIN,
}


class Accounts:
    """The accounts of a server. Args: `file` of accounts; `realm` of an identity provider; none of a kind not used."""

    def __init__(self, file: AccountFile | None, realm: Realm | None) -> None:
        self.file, self.realm = file, realm
        # Threads of their own: those of the application may all be busy with inferences.
        self._threads = CapacityLimiter(4)

    @property
    def are_on(self) -> bool:
        """Whether a request needs an account."""
        return self.file is not None or self.realm is not None

    async def sender(self, authorization: str) -> User | None:
        """Who sends a request with this `Authorization`, none when it is nobody known.

        Raises `ConfigError` when the file cannot be read, and `ProviderError` when the provider does not answer.
        """
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() == "basic":
            return self._of_browser(given)
        if scheme.lower() != "bearer":
            return None
        token = given.strip()
        if token.startswith(PREFIX) or self.realm is None:
            account = self.file.find(token) if self.file else None
            return _of_account(account) if account else None
        identity = await to_thread.run_sync(self.realm.identity, token, limiter=self._threads)
        return _of_identity(identity) if identity else None

    def login(self, username: str, password: str) -> dict[str, str] | None:
        """A bearer token for what a person types into a client's dialogue: the name and the token of an account, or
        the password of the identity provider. None when it is wrong. Raises as `sender`."""
        if self.file and (account := self.file.find(password)) and account.name == username:
            return {"access_token": password, "token_type": "Bearer"}
        if self.realm is None or password.startswith(PREFIX):  # our tokens are not told to anybody else
            return None
        return self.realm.exchange(username, password)

    def _of_browser(self, given: str) -> User | None:
        """The name and the token that a browser asked for and sends with every request to this server."""
        try:
            name, _, token = base64.b64decode(given, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        account = self.file.find(token) if self.file else None
        return _of_account(account) if account and account.name == name else None


def accounts_of(file: Path | None) -> Accounts:
    """The accounts that the options and MONAI Label's settings name. Raises `ConfigError`, such as for a file that is
    missing."""
    accounts = Accounts(AccountFile(file) if file else None, Realm() if settings.MONAI_LABEL_AUTH_ENABLE else None)
    if accounts.file and not accounts.file.accounts():
        logger.warning("%s: holds no account, so nobody can call this server", file)
    return accounts


def role_of(user: User) -> Role | None:
    """The highest role a user holds."""
    return next((role for role in reversed(ROLES) if ROLE_NAMES[role] in user.roles), None)


async def current_user(request: Request) -> User:
    """Takes the place of MONAI Label's dependency `get_current_user`: the gate has found out who it is."""
    user: User = request.scope["user"]
    return user


def signature(user: User) -> dict[str, str]:
    """What is kept with a label of who made it. What the client says counts only where nobody has an account."""
    return {"user": user.username} if user is DEFAULT_USER else {"user": user.username, "client_id": user.username}


def _of_account(account: Account) -> User:
    return User(username=account.name, roles=_including_lower(account.role))


def _of_identity(identity: Identity) -> User:
    highest = next((role for role in reversed(ROLES) if ROLE_NAMES[role] in identity.roles), None)
    roles = _including_lower(highest) if highest else []
    return User(username=identity.username, email=identity.email, name=identity.name, roles=roles)


def _including_lower(role: Role) -> list[str]:
    return [ROLE_NAMES[lower] for lower in ROLES[: ROLES.index(role) + 1]]
