"""Accounts in one file: name, role and the SHA-256 of a bearer token, which is shown once and kept nowhere.

A token holds 256 random bits. Nobody finds it by trying, so the slow and salted digest that a password needs would
protect nothing here, and would be paid with every request.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated, Literal, get_args

import filelock
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from vqseg.clock import latest_now
from vqseg.errors import ConfigError
from vqseg.files import new_file

__all__ = ["PREFIX", "ROLES", "Account", "AccountFile", "Role"]

Role = Literal["user", "annotator", "reviewer", "admin"]
# Each includes those before it.
ROLES: tuple[Role, ...] = get_args(Role)
# Tells a token from one of an identity provider, and lets scanners for secrets find one that was published.
PREFIX = "vqseg_"
_BYTES = 32


class Account(BaseModel):
    """Who may call the server as what; `expires` in UTC, none for never."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Without a colon, which separates name and token in HTTP's basic authentication.
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}$")]
    role: Role
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    created: AwareDatetime
    expires: AwareDatetime | None = None

    def is_valid(self, now: datetime | None = None) -> bool:
        """Whether it has not expired yet."""
        return self.expires is None or (now or latest_now()) < self.expires


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    accounts: tuple[Account, ...] = ()

    @field_validator("accounts")
    @classmethod
    def _unique(cls, accounts: tuple[Account, ...]) -> tuple[Account, ...]:
        names = [account.name for account in accounts]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)}: there twice")
        return accounts


class AccountFile:
    """The accounts of a server. It is read again when it changed, so nothing has to be started anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, ...] = ()
        self._accounts: tuple[Account, ...] = ()

    def accounts(self) -> tuple[Account, ...]:
        """All accounts, those that expired among them. Raises `ConfigError` when the file cannot be trusted or read."""
        try:
            status = self.path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode)
            if stamp != self._stamp:
                self._accounts = self._read(status.st_mode)
                self._stamp = stamp
        except FileNotFoundError:
            raise ConfigError(f"{self.path}: there is no such file of accounts; `vqseg token add` makes it") from None
        except OSError as error:
            raise ConfigError(f"{self.path}: the accounts cannot be read ({error.strerror})") from None
        return self._accounts

    def find(self, token: str) -> Account | None:
        """The account of a token, none when it is unknown or has expired. Raises `ConfigError`."""
        digest = _digest(token)
        # All are compared, each in constant time: how long it takes says nothing about any of them.
        found = [account for account in self.accounts() if hmac.compare_digest(account.sha256, digest)]
        return found[0] if found and found[0].is_valid() else None

    def add(self, name: str, role: Role, days: float | None = None) -> str:
        """Make an account, valid for so many `days`; returns its token. Raises `ConfigError` for a name that is taken
        or impossible."""
        token, now = PREFIX + secrets.token_urlsafe(_BYTES), _now()
        expires = now + timedelta(days=days) if days is not None else None
        try:
            account = Account(name=name, role=role, sha256=_digest(token), created=now, expires=expires)
        except ValidationError as error:
            raise ConfigError(f"{name!r}, {role!r}: {_in_words(error)}") from None

        def with_it(accounts: tuple[Account, ...]) -> tuple[Account, ...]:
            if name in {other.name for other in accounts}:
                raise ConfigError(f"{name}: has an account already; remove it first, its token then stops working")
            return (*accounts, account)

        self._change(with_it)
        return token

    def remove(self, name: str) -> None:
        """Remove an account; its token stops working at once. Raises `ConfigError` when there is none."""

        def without_it(accounts: tuple[Account, ...]) -> tuple[Account, ...]:
            if name not in (names := [account.name for account in accounts]):
                raise ConfigError(f"{name}: has no account; those that have one: {', '.join(names) or 'nobody'}")
            return tuple(account for account in accounts if account.name != name)

        self._change(without_it)

    def _change(self, change: Callable[[tuple[Account, ...]], tuple[Account, ...]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self.path.with_name(f".{self.path.name}.lock")):
            content = _Content(accounts=change(self.accounts() if self.path.exists() else ()))
            with new_file(self.path) as temporary:
                temporary.touch(mode=0o600)
                temporary.write_text(content.model_dump_json(indent=1) + "\n", encoding="utf-8")

    def _read(self, mode: int) -> tuple[Account, ...]:
        if os.name == "posix" and mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigError(f"{self.path}: others may write it and so give themselves an account; chmod 600 it")
        try:
            return _Content.model_validate_json(self.path.read_bytes()).accounts
        except ValidationError as error:
            raise ConfigError(f"{self.path}: no file of accounts ({_in_words(error)})") from None


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _in_words(error: ValidationError) -> str:
    """Without the input: it holds digests."""
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}"
