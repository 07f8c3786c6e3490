"""TCP ports: free ones, and who holds a taken one."""

from __future__ import annotations

import socket

from workflow.errors import ServingError


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """`count` different ports that nothing listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((host, 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def check_ports(ports: dict[str, int], host: str) -> None:
    """Say which port cannot be used, and who holds it.

    Args:
        ports: what the port is for -> its number.
    Raises:
        ServingError: a port is taken, forbidden, given twice or out of range.
    """
    for name, port in ports.items():
        others = [other for other in ports if ports[other] == port and other != name]
        if others:
            raise ServingError(
                f"port {port} is given for both {name} and {others[0]}",
                expected="three different ports",
            )
        if not 1 <= port <= 65_535:
            raise ServingError(f"{name} port {port} is out of range", expected="1 to 65535")
        _check_port(name, port, host)


def _check_port(name: str, port: int, host: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # TIME_WAIT is no obstacle
        try:
            probe.bind((host, port))
        except PermissionError:
            raise ServingError(
                f"{name} port {port} needs root rights",
                next_step=f"choose another with --{name.lower()}-port",
            ) from None
        except OSError as error:
            raise ServingError(
                f"{name} port {port} on {host} cannot be used",
                found=_port_holder(port) or error.strerror,
                next_step=f"stop it, or choose another port with --{name.lower()}-port",
            ) from None


def _port_holder(port: int) -> str | None:
    """The process that listens on `port`, in words, if the system lets us see it."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status != psutil.CONN_LISTEN or not connection.laddr:
                continue
            if connection.laddr.port != port:
                continue
            if connection.pid is None:
                return "a process of another user listens on it"
            return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    except psutil.Error:
        pass
    return None
