"""An SSH server that lets anybody in, opens every session, and then does what no good one would, once the first script
begins to come:

    silent         nothing, ever
    output         standard output without an end, as fast as it is taken
    errors         the same on standard error
    unasked        the same without regard to how much the other side is ready to take
    ignore         messages that are to be ignored, without an end
    renewal        the same, while keys are renewed again and again
    banners        banners of a login that is over, without an end
    debug          messages for a log, without an end
    requests       requests about the connection that want an answer, without an end
    channels       channels that nobody asked for, without an end
    windows        room for more input, without an end

Started with one of these words. Writes a line with its port and its host key, one when it begins to do harm, and one for
every so many packets that it has sent without regard for a window; serves until its standard input ends.
"""

import asyncio
import os
import sys

import asyncssh
from asyncssh.constants import MSG_CHANNEL_DATA, MSG_CHANNEL_OPEN, MSG_CHANNEL_WINDOW_ADJUST
from asyncssh.constants import MSG_DEBUG, MSG_GLOBAL_REQUEST, MSG_IGNORE, MSG_USERAUTH_BANNER
from asyncssh.packet import Boolean, String, UInt32

# Nothing in it is to reach a terminal.
NOISE = b"\x1b]0;owned\x07\x1b[2J\x9b31m\n" + b"x" * 30_000
# How much may wait to be sent: the other side's reading sets the pace.
AHEAD = 4 << 20
# How many packets are told of.
STEP = 512


def packet(kind, channel):
    """A packet's number and its content."""
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
    # What is still going on ends with it.
    os._exit(0)


KIND = sys.argv[1]
asyncio.run(main())
