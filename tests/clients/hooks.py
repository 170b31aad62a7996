"""Hooks that fit schemathesis's requests to a test server of rsig: a host that exists, and harmless commands.

Only values that the document allows are replaced; invalid requests stay as they are.
"""

import os
import re

import schemathesis

HOST = os.environ["RSIG_TEST_HOST"]
GOOD_HOST = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,30}@)?[A-Za-z0-9][A-Za-z0-9._-]{0,60}(:[1-9][0-9]{0,3})?")
WAIT = re.compile("[1-9][0-9]{0,2}(ms|s)|[1-9]m")
COMMANDS = ["true", ["sleep", "0.2"], "echo out; echo err >&2; exit 3", ["sleep", "30"]]


def is_command(command):
    words = command if isinstance(command, list) else [command]
    good = all(isinstance(word, str) and "\0" not in word for word in words)
    return bool(good and words and words[0] and (isinstance(command, list) or re.search("[!-~]", command)))


@schemathesis.hook
def map_body(context, body):
    if not isinstance(body, dict):
        return body
    host = body.get("host")
    if isinstance(host, str) and GOOD_HOST.fullmatch(host) and len(host) % 4:
        body["host"] = HOST
        # A directory that does not exist would make the request fail.
        if isinstance(body.get("cwd"), str) and body["cwd"] and "\0" not in body["cwd"]:
            body["cwd"] = "/"
    if "command" in body and is_command(body["command"]):
        body["command"] = COMMANDS[len(str(body)) % len(COMMANDS)]
    return body


@schemathesis.hook
def map_query(context, query):
    if isinstance(query, dict):
        for name in ("wait", "grace"):
            if WAIT.fullmatch(str(query.get(name))):
                query[name] = "50ms"
        if query.get("follow") in (True, "true"):
            query["follow"] = "false"
    return query


@schemathesis.hook
def before_call(context, case, kwargs):
    # What the document can't express: a wait needs something to wait for, and an expression must be valid.
    query, path = case.query, case.path_parameters or {}
    if not isinstance(query, dict):
        return
    is_log = case.path.endswith("/_log")
    if WAIT.fullmatch(str(query.get("wait"))):
        if str(path.get("signal")) == "0" or (is_log and "wait_for" not in query):
            del query["wait"]
    if is_log and isinstance(query.get("wait_for"), str) and re.search("[^A-Za-z0-9 ]", query["wait_for"]):
        query["wait_for"] = "x"
