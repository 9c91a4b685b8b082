"""The file of accounts and `vqseg token`."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from vqseg.cli import main
from vqseg.errors import ConfigError
from vqseg.tokens import PREFIX, ROLES, AccountFile


@pytest.fixture
def file(tmp_path: Path) -> AccountFile:
    return AccountFile(tmp_path / "accounts.json")


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["token", *(str(argument) for argument in arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result


def test_a_token_opens_its_own_account_alone(file: AccountFile) -> None:
    tokens = {f"{role}.1": file.add(f"{role}.1", role) for role in ROLES}
    for name, token in tokens.items():
        account = file.find(token)
        assert account is not None
        assert (account.name, account.role) == (name, name.partition(".")[0])
    for wrong in ("", PREFIX, "user.1", tokens["admin.1"][:-1], tokens["admin.1"] + "A", "\udcff", "é"):
        assert file.find(wrong) is None


def test_a_token_has_256_bits_and_is_kept_as_a_digest_only(file: AccountFile) -> None:
    tokens = [file.add(f"reader{number}", "user") for number in range(4)]
    assert len({token.removeprefix(PREFIX) for token in tokens}) == 4
    assert all(len(token.removeprefix(PREFIX)) * 6 >= 256 for token in tokens)
    text = file.path.read_text(encoding="utf-8")
    for token in tokens:
        assert token.removeprefix(PREFIX) not in text
        assert hashlib.sha256(token.encode()).hexdigest() in text


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_the_file_belongs_to_its_owner_alone(file: AccountFile) -> None:
    before = os.umask(0)
    try:
        token = file.add("anna", "user")
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    for mode in (0o620, 0o602):
        file.path.chmod(mode)
        with pytest.raises(ConfigError, match="chmod 600"):
            file.find(token)
    file.path.chmod(0o440)
    assert file.find(token) is not None


def test_a_change_by_another_process_counts_at_once(file: AccountFile) -> None:
    other, token = AccountFile(file.path), file.add("anna", "annotator")
    assert other.find(token) is not None
    file.remove("anna")
    assert other.find(token) is None
    newer = file.add("anna", "annotator")
    assert other.find(token) is None
    assert other.find(newer) is not None
    file.path.unlink()
    with pytest.raises(ConfigError, match="no such file"):
        other.find(newer)


def test_an_account_ends_when_it_expires(file: AccountFile) -> None:
    token = file.add("guest", "user", days=1)
    account = file.find(token)
    assert account is not None
    assert account.expires is not None
    assert account.expires - account.created == timedelta(days=1)
    assert account.is_valid(account.expires - timedelta(seconds=1))
    assert not account.is_valid(account.expires)
    content = json.loads(file.path.read_text(encoding="utf-8"))
    content["accounts"][0]["expires"] = (datetime.now(timezone.utc) - timedelta(seconds=1)).isoformat()
    file.path.write_text(json.dumps(content), encoding="utf-8")
    assert file.find(token) is None


def test_processes_that_add_at_once_lose_nobody(file: AccountFile) -> None:
    names = [f"reader{number}" for number in range(6)]
    threads = [threading.Thread(target=AccountFile(file.path).add, args=(name, "user")) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(account.name for account in file.accounts()) == sorted(names)


@pytest.mark.parametrize("name", ["", "a:b", "a b", "../a", "a\n", "ü", "-a", "a" * 65])
def test_impossible_names_are_refused(file: AccountFile, name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        file.add(name, "user")
    assert not file.path.exists()


def account(**changes: Any) -> dict[str, Any]:
    return {"name": "anna", "role": "user", "sha256": "0" * 64, "created": "2026-01-01T00:00:00Z"} | changes


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "content"),
        ("[]", "content"),
        ({"users": []}, "users"),
        ({"accounts": [account(role="root")]}, "role"),
        ({"accounts": [account(sha256="abc")]}, "sha256"),
        ({"accounts": [account(created="2026-01-01T00:00:00")]}, "created"),
        ({"accounts": [account(password="x")]}, "password"),
        ({"accounts": [account(), account(role="admin")]}, "anna: there twice"),
    ],
)
def test_a_file_that_is_not_understood_lets_nobody_in(file: AccountFile, content: Any, words: str) -> None:
    token = file.add("bea", "admin")
    file.path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    for _ in range(2):
        with pytest.raises(ConfigError, match=words) as caught:
            file.find(token)
    assert str(file.path) in str(caught.value)
    assert "0" * 64 not in str(caught.value)
    with pytest.raises(ConfigError, match=words):
        file.add("carl", "user")


def test_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "of the server" / "accounts.json"
    added = run("add", "anna", "--role", "annotator", "--days", 30, "--accounts", path)
    assert added.exit_code == 0, added.output
    token = added.stdout.strip()  # alone, so that a script can take it
    found = AccountFile(path).find(token)
    assert found is not None
    assert found.name == "anna"
    assert run("add", "bea", "--role", "admin", "--accounts", path).exit_code == 0

    listed = run("list", "--accounts", path).stdout
    assert [line.split()[:2] for line in listed.splitlines()] == [["anna", "annotator"], ["bea", "admin"]]
    assert "until" in listed.splitlines()[0]
    assert token.removeprefix(PREFIX) not in listed
    assert found.sha256 not in listed

    again = run("add", "anna", "--role", "user", "--accounts", path)
    assert again.exit_code == 2
    assert "has an account already" in again.output
    assert run("remove", "anna", "--accounts", path).exit_code == 0
    assert AccountFile(path).find(token) is None
    nobody = run("remove", "anna", "--accounts", path)
    assert nobody.exit_code == 2
    assert "those that have one: bea" in nobody.output
    assert run("add", "carl", "--role", "root", "--accounts", path).exit_code == 2
    assert run("list", "--accounts", tmp_path / "none.json").exit_code == 2
