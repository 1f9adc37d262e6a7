"""Nothing is closed under its user."""

from __future__ import annotations

import threading

import pytest

from streaming.errors import LogError
from streaming.in_use import InUse


def test_closing_waits_for_the_last_user() -> None:
    in_use, inside, leave = InUse("the thing"), threading.Event(), threading.Event()

    def use() -> None:
        with in_use.using():
            inside.set()
            leave.wait()

    user, closer = threading.Thread(target=use), threading.Thread(target=in_use.close)
    user.start()
    inside.wait()
    closer.start()
    closer.join(0.05)
    assert closer.is_alive()
    leave.set()
    closer.join(10)
    user.join(10)
    assert not closer.is_alive()


def test_what_is_closed_lets_nobody_in() -> None:
    in_use = InUse("the thing")
    in_use.close()
    with pytest.raises(LogError, match="the thing is closed"), in_use.using():
        pass


def test_an_error_inside_is_a_leave_too() -> None:
    in_use = InUse("the thing")
    with pytest.raises(ZeroDivisionError), in_use.using():
        _ = 1 / 0
    in_use.close()
