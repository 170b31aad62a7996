"""An SSH server that accepts every login and every session, and misbehaves as soon as the first script arrives:

    silent         sends nothing
    output         endless standard output, as fast as it is read
    errors         the same on standard error
    unasked        the same, ignoring the other side's window
    ignore         endless SSH_MSG_IGNORE messages
    renewal        the same, with frequent key exchanges
    banners        endless login banners, after the login
    debug          endless SSH_MSG_DEBUG messages
    requests       endless global requests that want a reply
    channels       endless requests to open channels
    windows        endless window adjustments

The argument is one of these words. Prints a line with the port and the host key, a line when it begins to misbehave,
and a line for every STEP packets sent without regard for a window. Serves until its standard input ends.
"""

import asyncio
import os
import sys

import asyncssh
from asyncssh.constants import MSG_CHANNEL_DATA, MSG_CHANNEL_OPEN, MSG_CHANNEL_WINDOW_ADJUST
from asyncssh.constants import MSG_DEBUG, MSG_GLOBAL_REQUEST, MSG_IGNORE, MSG_USERAUTH_BANNER
from asyncssh.packet import Boolean, String, UInt32

# No part of it may reach a terminal.
NOISE = b"\x1b]0;owned\x07\x1b[2J\x9b31m\n" + b"x" * 30_000
# Bytes queued for sending at most: the reader on the other side sets the pace.
AHEAD = 4 << 20
# Packets between two lines of output.
STEP = 512


def packet(kind, channel):
    """The message number and content of a packet."""
    match kind:
        case "unasked":
            return MSG_CHANNEL_DATA, UInt32(channel), String(NOISE)
        case "ignore" | "renewal":
            return MSG_IGNORE, String(NOISE)
        case "banners":
            return MSG_USERAUTH_BANNER, String(NOISE), String(b"")
        case "debug":
            return MSG_DEBUG, Boolean(True), String(NOISE), String(b"")
        case "requests":
            return MSG_GLOBAL_REQUEST, String(b"\x1b[2J@example.org"), Boolean(True)
        case "channels":
            return MSG_CHANNEL_OPEN, String(b"session"), UInt32(7), UInt32(1 << 20), UInt32(1 << 15)
        case "windows":
            return MSG_CHANNEL_WINDOW_ADJUST, UInt32(channel), UInt32(1)


async def serve(process):
    connection = process.channel.get_connection()
    await process.stdin.read(1)
    print("begun", flush=True)
    if KIND == "silent":
        await asyncio.Event().wait()
    if KIND in ("output", "errors"):
        stream = process.stdout if KIND == "output" else process.stderr
        while True:
            stream.write(NOISE)
            await stream.drain()
    transport = connection._transport
    content = packet(KIND, process.channel._send_chan)
    sent = 0
    while not connection.is_closed():
        for _ in range(16):
            connection.send_packet(*content)
        sent += 16
        if sent % STEP == 0:
            print("flooding", flush=True)
        while transport.get_write_buffer_size() > AHEAD and not connection.is_closed():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)


async def main():
    key = asyncssh.generate_private_key("ssh-ed25519")

    class Anybody(asyncssh.SSHServer):
        def begin_auth(self, username):
            return False

    server = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_factory=Anybody,
        server_host_keys=[key],
        process_factory=serve,
        encoding=None,
        rekey_bytes=1 << (20 if KIND == "renewal" else 60),
        rekey_seconds=1 << 30,
    )
    public = key.export_public_key().decode().strip()
    print(server.get_port(), public, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    # Ends whatever is still running.
    os._exit(0)


KIND = sys.argv[1]
asyncio.run(main())
