"""`vqseg token`: who may call a server that has accounts, `--conf accounts FILE`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import get_args

import click

from vqseg.tokens import AccountFile, Role

__all__ = ["token"]

_ACCOUNTS = click.option(
    "--accounts", required=True, type=click.Path(path_type=Path, dir_okay=False), help="the server's file of accounts"
)


@click.group()
def token() -> None:
    """Make, list and remove the accounts of a server and their tokens."""


@token.command()
@click.argument("name")
@click.option("--role", required=True, type=click.Choice(get_args(Role)), help="each includes those before it")
@click.option("--days", type=click.FloatRange(min=0, min_open=True, max=36500), help="valid so long; default: always")
@_ACCOUNTS
def add(name: str, role: Role, days: float | None, accounts: Path) -> None:
    """Make an account for NAME and show its token, this once."""
    made = AccountFile(accounts).add(name, role, days)
    click.echo(f"{name} is {role}; the token is kept nowhere, so give it to nobody else and note it now:", err=True)
    click.echo(made)


@token.command("list")
@_ACCOUNTS
def list_accounts(accounts: Path) -> None:
    """List names, roles and when they were made; nobody can see a token again."""
    for account in AccountFile(accounts).accounts():
        until = "" if account.expires is None else f"  {'until' if account.is_valid() else 'EXPIRED'} "
        click.echo(f"{account.name}  {account.role}  {_day(account.created)}{until}{_day(account.expires)}".rstrip())


@token.command()
@click.argument("name")
@_ACCOUNTS
def remove(name: str, accounts: Path) -> None:
    """Remove the account of NAME; its token stops working at once."""
    AccountFile(accounts).remove(name)
    click.echo(f"{name} has no account any more")


def _day(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d}" if moment else ""
