"""A daemon as an operator sees it."""

from __future__ import annotations

import socket

from daemon import Daemon


class Node(Daemon):
    """A daemon whose metrics are read."""

    def gauge(self, name: str) -> float:
        """The sum of a metric's samples at /metrics."""
        total, found = 0.0, False
        for line in self._metrics().splitlines():
            series, _, value = line.rpartition(" ")
            if series == name or series.startswith(f"{name}{{"):
                total, found = total + float(value), True
        assert found, f"no metric {name}"
        return total

    def _metrics(self) -> str:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self.directory / "edge.sock"))
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: cairn\r\nConnection: close\r\n\r\n")
            answer = b""
            while piece := connection.recv(65_536):
                answer += piece
        return answer.decode()
