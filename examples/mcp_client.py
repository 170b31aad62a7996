#!/usr/bin/env python3
"""Runs a command with `rsig mcp`, as an agent's client does: JSON-RPC, one message per line.

    examples/mcp_client.py HOST COMMAND
"""

import json
import subprocess
import sys


class Server:
    def __init__(self, host):
        self.process = subprocess.Popen(
            ["rsig", "mcp", "--allow-host", host], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.number = 0
        self.request(
            "initialize",
            {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "example", "version": "1"}},
        )
        self.send({"method": "notifications/initialized"})

    def send(self, message):
        self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        self.process.stdin.flush()

    def request(self, method, params):
        self.number += 1
        self.send({"id": self.number, "method": method, "params": params})
        for line in self.process.stdout:
            message = json.loads(line)
            if message.get("id") == self.number:
                if "error" in message:
                    sys.exit(message["error"]["message"])
                return message["result"]
        sys.exit("rsig mcp has ended")

    def call(self, tool, **arguments):
        return self.request("tools/call", {"name": tool, "arguments": arguments})["structuredContent"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


host, command = sys.argv[1:]
server = Server(host)
answer = server.call("ssh_exec", host=host, command=command, timeout_ms=60000)
server.close()
sys.stdout.write(answer["stdout"])
sys.stderr.write(answer["stderr"])
sys.exit(answer["exit_status"])
