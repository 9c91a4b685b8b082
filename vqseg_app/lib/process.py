"""Which process this is: MONAI Label builds the app in the server and again in a child for every background task."""

from __future__ import annotations

import os
import sys
import traceback
from types import TracebackType
from typing import NoReturn

from vqseg.errors import VQSegError

_SERVER = "monailabel.main"
_CHILD = "monailabel.interfaces.utils.app"
_OF_SERVER = "VQSEG_SERVER_PID"
# Told by the server: one that ends while a child starts is nobody's parent by the time that this module is loaded.
_PARENT = int(os.environ.get(_OF_SERVER, os.getppid()))


def _program() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else ""


def is_child() -> bool:
    """Whether this is the child process of a training, a scoring or a batch inference."""
    return _program() == _CHILD


def tell_children() -> None:
    """Tell the children that this process will start, through the environment, whose children they are."""
    if not is_child():
        os.environ[_OF_SERVER] = str(os.getpid())


def give_way(niceness: int) -> None:
    """Let others have the processors first, in a child process; 19 takes what nobody else wants."""
    if is_child():
        os.nice(niceness)


def stop_in_words(error: VQSegError) -> NoReturn:
    """End the start of the app with a message instead of a stack trace."""
    if _program() != _SERVER:
        raise error
    # The app is built inside uvicorn's start-up hook, which prints the stack trace of everything that is raised in
    # it, SystemExit included (uvicorn 0.54). Nothing is open yet that would have to be closed.
    print(f"vqseg: {error}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(2)


def stop_without_server() -> None:
    """End a child whose server is gone: nobody is left who could stop it or would ask for what it does."""
    if is_child() and os.getppid() != _PARENT:
        sys.exit("vqseg: the server is gone")


def show_errors_in_words() -> None:
    """Let a child end with a message: MONAI Label 0.8.5 keeps only the last 20 lines of its output."""
    if is_child():
        sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, VQSegError):
        print(f"vqseg: {error}", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(kind, error, trace)
