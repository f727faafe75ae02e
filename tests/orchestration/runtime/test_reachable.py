"""An unreachable cluster, or a path that is too long for sockets, leads to an error and not to minutes of retries."""

import socket

import pytest

from sepscene.models.config import SepsceneError
from sepscene.orchestration.runtime.reachable import check_address, check_temp_folder


@pytest.fixture
def closed_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_without_a_cluster_is_refused(closed_port: int, scheme: str) -> None:
    address = f"{scheme}127.0.0.1:{closed_port}"
    with pytest.raises(SepsceneError, match=rf"no Ray cluster responds at {address} .*ray start --head"):
        check_address(address, timeout_seconds=0)


def test_an_address_with_a_listening_server_passes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_address(f"127.0.0.1:{server.getsockname()[1]}", timeout_seconds=0)
    check_address("local")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://127.0.0.1:8265", "job server, for `sepscene submit --address`"),
        ("head", "must look like HOST:PORT"),
        ("head:port", "must look like HOST:PORT"),
        (":6379", "must look like HOST:PORT"),
        ("head:²", "must look like HOST:PORT"),
        ("127.0.0.1:99999", "no Ray cluster responds"),
        ("no.such.host.invalid:6379", "no Ray cluster responds"),
        ("head..node:6379", "no Ray cluster responds"),
    ],
)
def test_an_invalid_address_is_refused(address: str, reason: str) -> None:
    with pytest.raises(SepsceneError, match=reason):
        check_address(address, timeout_seconds=0)


def test_the_maximum_length_of_the_folder_for_temporary_files() -> None:
    check_temp_folder("/" + 38 * "t")
    with pytest.raises(SepsceneError, match=r"has 40 bytes.*at most 39: set RAY_TMPDIR"):
        check_temp_folder("/" + 39 * "t")
