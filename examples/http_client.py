#!/usr/bin/env python3
"""Starts a job with `rsig serve`, sends it a signal and waits for it to end, over the Unix socket of the server.

    examples/http_client.py SOCKET HOST COMMAND
"""

import http.client
import json
import socket
import sys


class Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path):
        super().__init__("localhost")
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


def call(method, route, body=None):
    connection = Connection(path)
    headers = {"Content-Type": "application/json"}
    connection.request(method, route, json.dumps(body) if body is not None else None, headers)
    response = connection.getresponse()
    answer = json.loads(response.read())
    if response.status >= 400:
        sys.exit(f"{response.status}: {answer}")
    return answer


path, host, command = sys.argv[1:]
job = call("POST", "/processes", {"host": host, "command": command})["id"]
print(job)
answer = call("POST", f"/processes/{job}/_signal/TERM?wait=5s")
print(f"exit status {answer['exit_status']}")
