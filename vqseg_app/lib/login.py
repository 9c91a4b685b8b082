"""`/auth/`: how 3D Slicer comes to a token, where there are accounts.

Its module asks for a name and a password and sends them to `/auth/token`, which MONAI Label 0.8.5 has for an identity
provider only. It is kept, since Slicer has no other way in, and takes the token of an account as password. MONAI
Label's own waits for the provider in the event loop, and answers a wrong password with a 500.
"""

from __future__ import annotations

import logging
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException
from fastapi.security import OAuth2PasswordRequestForm
from monailabel.config import settings
from monailabel.interfaces.utils.app import app_instance

from vqseg.errors import VQSegError

from .request_rules import AsUser

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/auth", tags=["Auth"])
CANNOT_CHECK = "the accounts of this server cannot be checked at present; its log says why"


@router.get("/", summary="Whether a token is needed")
def describe_accounts() -> Any:
    if app_instance().accounts.realm is None:
        return {"enabled": True}
    return {
        "enabled": True,
        "client_id": settings.MONAI_LABEL_AUTH_CLIENT_ID,
        "realm": settings.MONAI_LABEL_AUTH_REALM_URI,
    }


@router.post("/token", summary="A token for a name and a password, which may be the token of an account")
def log_in(form: Annotated[OAuth2PasswordRequestForm, Depends()]) -> Any:
    try:
        token = app_instance().accounts.login(form.username, form.password)
    except VQSegError as error:
        logger.error("nobody can log in: %s", error)
        raise HTTPException(503, CANNOT_CHECK) from None
    if token is None:
        raise HTTPException(401, "the name or the password is wrong", {"WWW-Authenticate": "Bearer"})
    return token


@router.get("/token/valid", summary="Whose token this is")
def describe_user(user: AsUser) -> Any:
    return user.model_dump()
