"""Check that Ray can be reached or started, before Ray itself retries for minutes or fails with its own messages."""

import os
import socket
import time

from sepscene.models.config import SepsceneError

TIMEOUT_SECONDS = 15.0
"""How long to wait for a cluster's head, which may just have been started."""

_MAX_SOCKET_BYTES = 107
"""Maximum length of a socket's path on Linux."""
_BELOW_TEMP = len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")


def check_temp_folder(folder: str) -> None:
    """Check that the paths of Ray's sockets in the folder for temporary files are not too long.

    Raises:
        SepsceneError: if they are; the message gives the maximum length.
    """
    size = len(os.fsencode(folder))
    limit = _MAX_SOCKET_BYTES - _BELOW_TEMP
    if size > limit:
        raise SepsceneError(
            f"the path of the folder for temporary files, {folder}, has {size} bytes, but Ray's sockets in it allow at "
            f"most {limit}: set RAY_TMPDIR to a shorter path, e.g. /tmp"
        )


def check_address(address: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
    """Check that a Ray cluster responds at an address.

    Args:
        address: HOST:PORT, ray://HOST:PORT, or `local` for a Ray that is started.
        timeout_seconds: how long to try.

    Raises:
        SepsceneError: if the address is not valid, or the cluster does not respond.
    """
    if address == "local":
        return
    if address.startswith(("http://", "https://")):
        raise SepsceneError(
            f"{address} is the address of Ray's job server, for `sepscene submit --address`. Inside a cluster, give "
            "HOST:PORT of its head, e.g. 10.0.0.1:6379, or `auto` on one of its nodes"
        )
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise SepsceneError(
            f"--address or RAY_ADDRESS {address!r} must look like HOST:PORT, e.g. 10.0.0.1:6379, or `auto`"
        )
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except (OSError, OverflowError, UnicodeError) as error:  # UnicodeError: not a host name, e.g. "a..b"
            if time.monotonic() >= deadline:
                raise SepsceneError(
                    f"no Ray cluster responds at {address} ({error}): start it (`ray start --head`), check host, port "
                    "and firewall, or unset RAY_ADDRESS to run on this machine"
                ) from None
        time.sleep(0.5)
