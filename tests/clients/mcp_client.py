"""A client of the Model Context Protocol, using the Python SDK, that is controlled on its standard input.

The arguments are the server's command line. Each input line is a JSON object; each output line answers one of them:

    {"do": "hello"}                                the server's description of itself
    {"do": "tools"}                                the list of tools
    {"do": "call", "tool": T, "arguments": A}      the tool's answer
    {"do": "calls", "calls": [[T, A], ...]}        the same for many concurrent calls
    {"do": "begin", "tool": T, "arguments": A}     null, once the request is sent; the call continues
    {"do": "cancel"}                               null; cancels the call that was begun
"""

import asyncio
import json
import os
import sys

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client


async def call(session, tool, arguments):
    try:
        result = await session.call_tool(tool, arguments)
    except Exception as error:  # The protocol itself refused the call.
        return {"refused": str(error)}
    text = [block.text for block in result.content]
    return {"is_error": bool(result.is_error), "answer": result.structured_content, "text": text}


class Counted:
    """A stream that counts the items taken from it."""

    def __init__(self, stream):
        self.stream = stream
        self.taken = 0

    async def send(self, item):
        # This returns once the task that writes to the server has taken the item.
        await self.stream.send(item)
        self.taken += 1

    async def aclose(self):
        await self.stream.aclose()

    async def __aenter__(self):
        await self.stream.__aenter__()
        return self

    async def __aexit__(self, *error):
        return await self.stream.__aexit__(*error)


async def serve(session, hello, requests):
    going = None
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        match order["do"]:
            case "hello":
                answer = hello.model_dump(mode="json")
            case "tools":
                answer = [tool.model_dump(mode="json") for tool in (await session.list_tools()).tools]
            case "call":
                answer = await call(session, order["tool"], order["arguments"])
            case "calls":
                answer = await asyncio.gather(*(call(session, *each) for each in order["calls"]))
            case "begin":
                before = requests.taken
                going = asyncio.create_task(call(session, order["tool"], order["arguments"]))
                while requests.taken == before and not going.done():
                    await asyncio.sleep(0.001)
                answer = None
            case "cancel":
                going.cancel()
                await asyncio.wait([going])
                answer = None
        print(json.dumps(answer), flush=True)


async def main():
    server = StdioServerParameters(command=sys.argv[1], args=sys.argv[2:], env=dict(os.environ))
    async with stdio_client(server) as (answers, requests):
        requests = Counted(requests)
        async with ClientSession(answers, requests) as session:
            await serve(session, await session.initialize(), requests)


asyncio.run(main())
