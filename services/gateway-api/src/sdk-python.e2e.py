"""Drives a platform with the official Python SDK, as it comes from PyPI.

    ANTHROPIC_BASE_URL=… ANTHROPIC_API_KEY=… python sdk-python.e2e.py

Prints one line of JSON per check, in the order they stand here: {"check": name, "error": null or what went wrong}. The
checks build on each other: one that misses what an earlier one should have left fails too. sdk-python.e2e.spec.ts
takes their names from this file.
"""

import asyncio
import json
import time
import traceback

import anthropic
from anthropic import APIStatusError, BadRequestError, ConflictError, NotFoundError
from anthropic.lib.sessions import accumulate_managed_agents_event
from pydantic import ValidationError

CHECKS = []


class State:
    """What the checks hand on."""

    def __getattr__(self, name):
        raise AssertionError(f"an earlier check left no {name}")


def check(name):
    def add(function):
        CHECKS.append((name, function))

    return add


def equal(found, wanted):
    assert found == wanted, f"found {found!r}, wanted {wanted!r}"


def fitting(thing):
    """The SDK takes any JSON for its types; this holds it to them: every required field, every type."""
    try:
        type(thing).model_validate(thing.model_dump(by_alias=True, exclude_unset=True))
    except ValidationError as error:
        # Of a union's variants all complain; those that miss a field are nearest to the truth.
        faults = sorted({f"{fault['type']}: {'.'.join(map(str, fault['loc']))}" for fault in error.errors()})
        near = [fault for fault in faults if fault.startswith("missing")]
        raise AssertionError(f"no {type(thing).__name__}: {(near or faults)[:8]}") from None
    return thing


def refused(error_class, call):
    try:
        call()
    except APIStatusError as error:
        equal(type(error), error_class)
        equal(error.body["type"], "error")
        equal(error.body["request_id"], error.request_id)
        assert error.body["error"]["message"], "an error without a message"
        return error
    raise AssertionError(f"not refused; {error_class.__name__} was wanted")


def message(text):
    return {"type": "user.message", "content": [{"type": "text", "text": text}]}


def text_of(event):
    return "".join(block.text for block in event.content)


def of_type(events, type_):
    return [event for event in events if event.type == type_]


def send(s, *events):
    return fitting(s.events.send(s.session.id, events=list(events)))


def until_idle(stream):
    events = []
    for event in stream:
        events.append(fitting(event))
        if event.type == "session.status_idle":
            return events
    raise AssertionError(f"the stream ended after {[event.type for event in events]}")


def turn(s, *events):
    """Sends events; returns what the stream shows until the session is idle again."""
    with s.events.stream(s.session.id, event_deltas=["agent.message"]) as stream:
        send(s, *events)
        return until_idle(stream)


@check("models are listed and retrieved")
def _(s):
    models = [fitting(model) for model in s.client.beta.models.list()]
    equal([model.id for model in models], ["demo", "demo-thinking"])
    equal(fitting(s.client.beta.models.retrieve("demo")), models[0])


@check("an agent is created, retrieved and updated; its versions are listed, page by page")
def _(s):
    agents = s.client.beta.agents
    tools = [
        {
            "type": "agent_toolset_20260401",
            "configs": [{"name": "bash", "permission_policy": {"type": "always_ask"}}],
        },
        {"type": "custom", "name": "lookup", "description": "looks up", "input_schema": {"type": "object"}},
    ]
    made = fitting(agents.create(name="python", model="demo", system="be brief", tools=tools))
    equal((made.version, made.model.id, made.system), (1, "demo", "be brief"))
    equal(fitting(agents.retrieve(made.id)), made)
    s.agent = fitting(agents.update(made.id, version=1, name="renamed", metadata={"team": "blue"}))
    equal((s.agent.version, s.agent.name, s.agent.metadata), (2, "renamed", {"team": "blue"}))
    equal(agents.retrieve(made.id, version=1).name, "python")
    versions = [fitting(one).version for one in agents.versions.list(made.id, limit=1)]
    equal(sorted(versions), [1, 2])
    refused(ConflictError, lambda: agents.update(made.id, version=1, name="late"))


@check("agents are listed, page by page")
def _(s):
    other = s.client.beta.agents.create(name="other", model="demo")
    ids = [fitting(agent).id for agent in s.client.beta.agents.list(limit=1)]
    assert {s.agent.id, other.id} <= set(ids), f"missing in {ids}"
    equal(len(ids), len(set(ids)))
    archived = fitting(s.client.beta.agents.archive(other.id))
    assert archived.archived_at is not None
    assert other.id not in [agent.id for agent in s.client.beta.agents.list()]
    assert other.id in [agent.id for agent in s.client.beta.agents.list(include_archived=True)]


@check("an environment is created, retrieved, updated and listed")
def _(s):
    environments = s.client.beta.environments
    config = {"type": "cloud", "networking": {"type": "limited", "allowed_hosts": ["example.com"]}}
    s.environment = fitting(environments.create(name=f"python-{s.agent.id}", config=config))
    equal(s.environment.config.networking.allowed_hosts, ["example.com"])
    equal(fitting(environments.retrieve(s.environment.id)), s.environment)
    s.environment = fitting(environments.update(s.environment.id, description="for a spec"))
    assert s.environment in [fitting(one) for one in environments.list(limit=1)]


@check("a session is created, retrieved and updated")
def _(s):
    sessions = s.client.beta.sessions
    made = fitting(sessions.create(agent=s.agent.id, environment_id=s.environment.id, title="t", metadata={"k": "v"}))
    equal((made.status, made.title, made.metadata, made.agent.version), ("idle", "t", {"k": "v"}, 2))
    found = fitting(sessions.retrieve(made.id))
    equal((found.id, found.agent, found.created_at), (made.id, made.agent, made.created_at))
    s.session = fitting(sessions.update(made.id, title="new title"))
    equal(s.session.title, "new title")


@check("a turn streams its text, and the deltas add up to the message")
def _(s):
    events = turn(s, message("SLOW[4]"))
    types = [event.type for event in events]
    equal([event.processed_at is None for event in of_type(events, "user.message")], [True, False])
    order = ["session.status_running", "span.model_request_start", "event_start", "agent.message"]
    order += ["span.model_request_end", "session.status_idle"]
    equal([type_ for type_ in types if type_ in order], order)
    snapshot = None
    for event in events[: types.index("agent.message")]:
        snapshot = accumulate_managed_agents_event(snapshot, event)
    final = of_type(events, "agent.message")[0]
    equal((snapshot.id, text_of(snapshot)), (final.id, "word1 word2 word3 word4"))
    equal(text_of(final), text_of(snapshot))
    assert len(of_type(events, "event_delta")) >= 2
    equal(events[-1].stop_reason.type, "end_turn")


@check("a call that must be asked for runs when it is allowed")
def _(s):
    events = turn(s, message("RUN[echo allowed-$((40 + 2))]"))
    call = of_type(events, "agent.tool_use")[0]
    equal((call.name, call.input, call.evaluated_permission), ("bash", {"command": "echo allowed-$((40 + 2))"}, "ask"))
    equal((events[-1].stop_reason.type, events[-1].stop_reason.event_ids), ("requires_action", [call.id]))
    events = turn(s, {"type": "user.tool_confirmation", "tool_use_id": call.id, "result": "allow"})
    result = of_type(events, "agent.tool_result")[0]
    equal((result.tool_use_id, bool(result.is_error)), (call.id, False))
    assert "allowed-42" in text_of(result), text_of(result)
    equal(events[-1].stop_reason.type, "end_turn")


@check("a call that is denied does not run, and the model is told why")
def _(s):
    call = of_type(turn(s, message("RUN[echo never]")), "agent.tool_use")[0]
    deny = {"type": "user.tool_confirmation", "tool_use_id": call.id, "result": "deny", "deny_message": "not now"}
    events = turn(s, deny)
    result = of_type(events, "agent.tool_result")[0]
    equal((result.tool_use_id, result.is_error), (call.id, True))
    assert "not now" in text_of(of_type(events, "agent.message")[0])
    error = refused(BadRequestError, lambda: send(s, {**deny, "result": "allow", "deny_message": None}))
    assert call.id in error.message, error.message


@check("a custom tool is answered by the client")
def _(s):
    events = turn(s, message("ASK[lookup]"))
    call = of_type(events, "agent.custom_tool_use")[0]
    equal((call.name, events[-1].stop_reason.event_ids), ("lookup", [call.id]))
    content = [{"type": "text", "text": "forty-two"}]
    events = turn(s, {"type": "user.custom_tool_result", "custom_tool_use_id": call.id, "content": content})
    assert "forty-two" in text_of(of_type(events, "agent.message")[0])


@check("an interrupt ends the turn; nothing follows")
def _(s):
    with s.events.stream(s.session.id, event_deltas=["agent.message"]) as stream:
        send(s, message("SLOW[100]"))
        for event in stream:
            if event.type == "event_delta":
                break
        send(s, {"type": "user.interrupt"})
        events = until_idle(stream)
    equal(of_type(events, "agent.message"), [])
    equal(events[-1].stop_reason.type, "end_turn")
    time.sleep(0.3)
    newest = next(iter(s.events.list(s.session.id, order="desc", limit=1)))
    equal(newest.id, events[-1].id)


@check("an interrupt and a message in one request redirect the session")
def _(s):
    with s.events.stream(s.session.id, event_deltas=["agent.message"]) as stream:
        send(s, message("SLOW[100]"))
        for event in stream:
            if event.type == "event_delta":
                break
        send(s, {"type": "user.interrupt"}, message("rather this"))
        events = until_idle(stream)
        if not of_type(events, "agent.message"):
            events = until_idle(stream)
    assert text_of(of_type(events, "agent.message")[0]).startswith("You said: rather this")


@check("events are listed page by page, either way round, by type and by time")
def _(s):
    every = [fitting(event) for event in s.events.list(s.session.id, limit=7)]
    ids = [event.id for event in every]
    assert len(ids) > 14, "too few for three pages"
    equal(len(ids), len(set(ids)))
    equal([event.id for event in s.events.list(s.session.id, limit=50, order="desc")], ids[::-1])
    messages = list(s.events.list(s.session.id, types=["user.message", "agent.message"], limit=3))
    equal([event.id for event in messages], [e.id for e in every if e.type in ("user.message", "agent.message")])
    middle = every[len(every) // 2].processed_at
    later = [event.id for event in s.events.list(s.session.id, created_at_gte=middle)]
    equal(later, [event.id for event in every if event.processed_at >= middle])


@check("sessions are listed page by page, by agent and status")
def _(s):
    sessions = s.client.beta.sessions
    more = [sessions.create(agent=s.agent.id, environment_id=s.environment.id).id for _ in range(2)]
    found = [fitting(one).id for one in sessions.list(agent_id=s.agent.id, statuses=["idle"], limit=1)]
    equal(found, [*more[::-1], s.session.id])
    equal([one.id for one in sessions.list(agent_id=s.agent.id, statuses=["running"])], [])
    for one in more:
        sessions.delete(one)


@check("the asynchronous client's tool runner answers custom tools by itself")
def _(s):
    asked = []

    @anthropic.beta_async_tool
    async def lookup(question: str) -> str:
        """Looks up."""
        asked.append(question)
        return "from the runner"

    async def run():
        async with anthropic.AsyncAnthropic() as client:
            events = client.beta.sessions.events
            await events.send(s.session.id, events=[message("ASK[lookup] twice ASK[lookup]")])
            return [call async for call in events.tool_runner(s.session.id, tools=[lookup], max_idle=0.5)]

    calls = asyncio.run(asyncio.wait_for(run(), 20))
    # It also shows the calls that the platform ran, as not its own.
    equal([(call.name, call.is_error) for call in calls if call.posted], [("lookup", False)] * 2)
    equal({call.name for call in calls if not call.posted}, {"bash"})
    equal(asked, ["ASK[lookup] twice ASK[lookup]"] * 2)
    last = next(iter(s.events.list(s.session.id, order="desc", types=["agent.message"])))
    assert "from the runner" in text_of(last)


@check("what is wrong, unknown or forbidden raises the SDK's own errors")
def _(s):
    beta = s.client.beta
    refused(NotFoundError, lambda: beta.sessions.retrieve("sesn_none"))
    refused(NotFoundError, lambda: beta.agents.retrieve("agent_none"))
    unknown = refused(BadRequestError, lambda: beta.agents.create(name="x", model="gpt-none"))
    assert "gpt-none" in unknown.message and "demo" in unknown.message, unknown.message
    refused(BadRequestError, lambda: s.events.send(s.session.id, events=[]))
    stranger = s.client.with_options(api_key="hf_wrong")
    refused(anthropic.AuthenticationError, lambda: stranger.beta.agents.list())


@check("a file is uploaded, listed, read and deleted")
def _(s):
    files = s.client.beta.files
    file = fitting(files.upload(file=("notes.txt", "from python: ü".encode(), "text/plain"), expires_in_seconds=3600))
    equal((file.type, file.filename, file.mime_type, file.size_bytes), ("file", "notes.txt", "text/plain", 15))
    equal(fitting(files.retrieve_metadata(file.id)), file)
    for _n in range(2):
        files.upload(file=("more.bin", b"x"))
    listed = [fitting(one).id for one in files.list(limit=1)]
    assert file.id in listed and len(listed) == len(set(listed)) >= 3, listed
    equal([one.id for one in files.list(ids=[file.id])], [file.id])
    equal(list(files.list(scope_id=s.session.id)), [])
    equal(files.download(file.id).read(), "from python: ü".encode())
    gone = fitting(files.delete(file.id))
    equal((gone.id, gone.type), (file.id, "file_deleted"))
    refused(NotFoundError, lambda: files.retrieve_metadata(file.id))
    refused(NotFoundError, lambda: files.download(file.id))
    refused(BadRequestError, lambda: files.upload(file=("a:b.txt", b"x")))


@check("a session is archived: terminated, readable, closed to messages")
def _(s):
    with s.events.stream(s.session.id) as stream:
        s.session = fitting(s.client.beta.sessions.archive(s.session.id))
        equal([event.type for event in stream][-1], "session.status_terminated")
    equal(s.session.status, "terminated")
    assert s.session.archived_at is not None
    assert list(s.events.list(s.session.id)), "no events left"
    try:
        send(s, message("too late"))
    except APIStatusError as error:
        assert error.status_code in (400, 409), error
    else:
        raise AssertionError("an archived session took a message")
    ids = [one.id for one in s.client.beta.sessions.list(agent_id=s.agent.id)]
    assert s.session.id not in ids
    ids = [one.id for one in s.client.beta.sessions.list(agent_id=s.agent.id, include_archived=True)]
    assert s.session.id in ids


@check("sessions and environments are deleted, agents archived")
def _(s):
    beta = s.client.beta
    gone = fitting(beta.sessions.delete(s.session.id))
    equal((gone.id, gone.type), (s.session.id, "session_deleted"))
    refused(NotFoundError, lambda: beta.sessions.retrieve(s.session.id))
    refused(NotFoundError, lambda: s.events.list(s.session.id))
    assert fitting(beta.agents.archive(s.agent.id)).archived_at is not None
    refused(BadRequestError, lambda: beta.sessions.create(agent=s.agent.id, environment_id=s.environment.id))
    gone = fitting(beta.environments.delete(s.environment.id))
    equal((gone.id, gone.type), (s.environment.id, "environment_deleted"))
    refused(NotFoundError, lambda: beta.environments.retrieve(s.environment.id))


def told(error):
    """One line of this file, and what went wrong there."""
    line = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == __file__][-1]
    return f"line {line}: {''.join(traceback.format_exception_only(error))[:1500]}"


def main():
    s = State()
    s.client = anthropic.Anthropic(timeout=20)
    s.events = s.client.beta.sessions.events
    for name, function in CHECKS:
        error = None
        try:
            function(s)
        except Exception as fault:
            error = told(fault)
        print(json.dumps({"check": name, "error": error}), flush=True)


main()
