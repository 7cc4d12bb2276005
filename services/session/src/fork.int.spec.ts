import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  type Agent,
  type Command,
  type CommandReply,
  commandSubject,
  foldSessionView,
  type MountedFile,
  newId,
  type Session,
  type SessionEvent,
  type SessionView,
  streamOf,
} from '@holdfast/contracts';
import { checkLog, compareProjection, EventLog, foldStream, rebuildProjection } from '@holdfast/event-store';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { DEFAULT_WORKSPACE } from './migrations/bootstrap.ts';
import { sessionProjection } from './session/session.projection.ts';
import { evolve, initialState, type SessionState } from './session/session.state.ts';
import { idle, ofType, say, streamAnswer, texts, toolset, types, World } from './test/world.ts';
import { Conversation } from './turn/conversation.ts';

let world: World;
beforeAll(async () => {
  world = await World.start();
  await world.service('session-1');
}, 180_000);
afterAll(async () => {
  await world.stop();
}, 60_000);

const fork = (parent: string, version: number, body: object = {}, rest: object = {}): Promise<Session> =>
  world.command<Session>('session', newId('session'), 'fork', { from: { session_id: parent, version }, ...body }, rest);
const headOf = async (id: string): Promise<number> =>
  (await world.log.streamHead(streamOf('session', id)))?.version ?? 0;
const viewAt = (id: string, version?: number): Promise<SessionView | undefined> =>
  foldStream(world.log, foldSessionView, streamOf('session', id), version);
const stateOf = (all: readonly SessionEvent[]): SessionState => all.reduce(evolve, initialState);
function conversationOf(all: readonly SessionEvent[]): Conversation {
  const conversation = new Conversation();
  for (const event of all) conversation.apply(event);
  return conversation;
}
/** Calls of the model that have no result right after them, as gateways refuse them. */
function unanswered(all: readonly SessionEvent[]): string[] {
  const { items } = conversationOf(all);
  return items.flatMap((item, at) => {
    if (item.role !== 'assistant') return [];
    const results = items.slice(at + 1, at + 1 + item.calls.length);
    return item.calls
      .filter(({ id }) => !results.some((one) => one.role === 'tool' && one.callId === id))
      .map(({ id }) => id);
  });
}

/** A session that did all that sessions do, with at least so many events. */
async function eventful(atLeast: number): Promise<SessionEvent[]> {
  const agent = await world.createAgent(toolset(['bash']));
  const { id } = await world.createSession({ title: 'eventful', metadata: { a: '1' } }, agent);
  let idles = 0;
  for (;;) {
    await world.send(id, [say('SLOW[1] RUN[echo asked]')]);
    let all = await world.until(id, idle(++idles));
    const asked = ofType(all, 'agent.tool_use').at(-1);
    await world.send(id, [{ type: 'user.tool_confirmation', tool_use_id: asked?.id, result: 'allow' }]);
    await world.until(id, idle(++idles));
    await world.send(id, [say('ASK[lookup] WRITE[a.txt|b]'), say('queued behind it')]);
    all = await world.until(id, idle(++idles));
    const call = ofType(all, 'agent.custom_tool_use').at(-1);
    await world.send(id, [
      { type: 'user.custom_tool_result', custom_tool_use_id: call?.id, content: [{ type: 'text', text: 'found' }] },
    ]);
    await world.until(id, idle(++idles));
    await world.send(id, [say('SLOW[60]')]);
    await world.send(id, [say('waits')]);
    await sleep(150);
    await world.send(id, [{ type: 'user.interrupt' }]);
    await world.until(id, idle(++idles));
    await world.command('session', id, 'update', { title: `round ${idles}`, metadata: { n: String(idles) } });
    await world.send(id, [say('ERR[400]')]);
    all = await world.until(id, idle(++idles));
    if (all.length >= atLeast) return all;
  }
}

describe('a fork', () => {
  it('at every event of a session of 200 is, up to there, what the session was, and goes idle with nothing open (C5)', async () => {
    const events = await eventful(200);
    const id = events[0]?.streamId.slice('session-'.length) ?? '';
    expect(events.length).toBeGreaterThanOrEqual(200);
    let closedCalls = 0;
    let closedRequests = 0;
    let dropped = 0;
    for (let version = 1; version <= events.length; version++) {
      const prefix = events.slice(0, version);
      const child = await fork(id, version);
      const all = await world.events(child.id);
      const shared = all.slice(0, version);
      const own = all.slice(version);
      // The prefix: event by event, and by each of the folds.
      expect(shared.map((event) => ({ ...event, streamId: '' }))).toEqual(
        prefix.map((event) => ({ ...event, streamId: '' })),
      );
      expect(stateOf(shared)).toEqual(stateOf(prefix));
      expect(await viewAt(child.id, version)).toEqual({ ...(await viewAt(id, version)), id: child.id });
      expect(conversationOf(shared).items).toEqual(conversationOf(prefix).items);
      // Its own: what was open is closed, what waited is dropped, and then it is idle.
      const then = stateOf(prefix);
      expect(types(own)).toEqual([
        'session.forked',
        ...(then.openRequest === null ? [] : ['span.model_request_end']),
        ...then.calls.map(({ kind }) => (kind === 'custom' ? 'user.custom_tool_result' : 'agent.tool_result')),
        'session.status_idle',
      ]);
      closedCalls += then.calls.length;
      closedRequests += then.openRequest === null ? 0 : 1;
      dropped += then.queue.length;
      expect(ofType(own, 'session.forked')[0]?.data.dropped_event_ids).toEqual(then.queue.map((one) => one.id));
      expect(stateOf(all)).toMatchObject({
        lifecycle: 'open',
        status: 'idle',
        stopReason: { type: 'end_turn' },
        queue: [],
        calls: [],
        openRequest: null,
        turn: null,
        owesStep: false,
        sandbox: null,
        generation: 0,
        title: then.title,
        metadata: then.metadata,
      });
      expect(unanswered(all)).toEqual([]);
      expect(child).toMatchObject({
        status: 'idle',
        title: then.title,
        usage: { input_tokens: 0 },
        forked_from: { session_id: id, version, checkpoint: null },
      });
    }
    // The session had all of it, so that the above said something.
    for (const count of [closedCalls, closedRequests, dropped]) expect(count).toBeGreaterThan(5);
    // The session itself only noted its forks.
    const after = await world.events(id);
    expect(after.slice(0, events.length)).toEqual(events);
    expect(new Set(types(after.slice(events.length)))).toEqual(new Set(['session.fork_created']));
    const { rows } = await world.pool.query<{ stored: string }>('select count(*) as stored from events');
    const streams = await world.pool.query<{ versions: string }>('select sum(version) as versions from streams');
    // By reference: the forks' streams are longer than all rows together.
    expect(Number(streams.rows[0]?.versions)).toBeGreaterThan(5 * Number(rows[0]?.stored));
  }, 120_000);

  it('goes on by itself: its model knows the conversation and is told that the workspace is new', async () => {
    const parent = await world.createSession({ initial_events: [say('RUN[echo one]')] });
    await world.until(parent.id, idle());
    const child = await fork(parent.id, await headOf(parent.id));
    const before = world.model.calls.length;
    await world.send(child.id, [say('RUN[echo two]')]);
    const all = await world.until(child.id, idle(3));
    const [asked] = world.model.calls.slice(before);
    const told = asked?.body.messages.map(({ role, content }) => `${role}: ${JSON.stringify(content)}`) ?? [];
    expect(told.findIndex((line) => line.includes('RUN[echo one]'))).toBe(0);
    expect(told.at(-2)).toMatch(/^system: .*forked from another.*workspace is not the one of that session/);
    expect(told.at(-1)).toMatch(/^user: .*RUN\[echo two\]/);
    expect(told.filter((line) => line.includes('forked from'))).toHaveLength(1);
    const sandboxes = ofType(all, 'session.sandbox_attached').map(({ data }) => data.sandbox_id);
    expect(sandboxes).toEqual([`sbx_${parent.id}`, `sbx_${child.id}`]);
    expect(texts(all)).toHaveLength(2);
    expect(all.map(({ version }) => version)).toEqual(all.map((_, n) => n + 1));
    // Neither sees what the other does.
    await world.send(parent.id, [say('only here')]);
    expect(texts(await world.until(parent.id, idle(2)))).toHaveLength(2);
    expect(texts(await world.events(child.id))).toHaveLength(2);
    const view = await viewAt(child.id);
    expect(view?.usage.input_tokens).toBe(
      ofType(all.slice(child.forked_from?.version ?? 0), 'span.model_request_end').reduce(
        (sum, { data }) => sum + data.model_usage.input_tokens,
        0,
      ),
    );
  });

  it('begins with the files that were kept last at or before its point, which stay when the other goes', async () => {
    const parent = await world.createSession();
    // What calls did is in the log: a result at each of 5, 8, 11.
    for (const command of ['one', 'two', 'three']) {
      await world.send(parent.id, [say(`RUN[echo ${command}]`)]);
      await world.until(parent.id, (all) =>
        ofType(all, 'agent.tool_result').some(({ data }) => JSON.stringify(data).includes(command)),
      );
      await world.until(parent.id, idle(['one', 'two', 'three'].indexOf(command) + 1));
    }
    const events = await world.events(parent.id);
    const results = ofType(events, 'agent.tool_result');
    const calls = ofType(events, 'agent.tool_use').map(({ id }) => id);
    const at = (n: number): number => results[n]?.version ?? 0;
    const keep = async (id: string, session: string, version: number, through: number) =>
      world.pool.query(
        `insert into checkpoints (id, workspace_id, session_id, sandbox_id, context_id, version, through_version, roots, packs, figures)
         values ($1, $2, $3, 'sbx_1', 'context', $4, $5, '{"a":1}', '{p1}', '{}')`,
        [id, DEFAULT_WORKSPACE, session, version, through],
      );
    await keep('ckpt_first', parent.id, at(0), at(1) - 1);
    await keep('ckpt_second', parent.id, at(1) + 1, at(2) + 50);
    const filesOf = async (child: Session) => {
      const { rows } = await world.pool.query(
        'select id, sandbox_id, context_id, version::int, through_version::int, roots, packs from checkpoints where session_id = $1',
        [child.id],
      );
      return rows as { id: string; version: number; through_version: number }[];
    };
    const begun = async (session: string, version: number) => {
      const child = await fork(session, version);
      const { checkpoint, missing_tool_use_ids: missing } = child.forked_from ?? {};
      const files = await filesOf(child);
      expect(files.map(({ id, through_version }) => ({ id, version: through_version }))).toEqual(
        checkpoint === null ? [] : [checkpoint],
      );
      return { child, from: files[0]?.version, through: checkpoint?.version, missing };
    };
    expect(await begun(parent.id, at(0) - 1)).toMatchObject({ from: undefined, missing: [] });
    expect(await begun(parent.id, at(0))).toMatchObject({ from: at(0), through: at(0), missing: [] });
    // Between two: the call in between is named. What was found unchanged later is so here as well, as far as the fork goes.
    expect(await begun(parent.id, at(1))).toMatchObject({ from: at(0), through: at(1) - 1, missing: [calls[1]] });
    const { child } = await begun(parent.id, at(2));
    expect(await filesOf(child)).toMatchObject([
      {
        sandbox_id: 'sbx_1',
        context_id: null,
        version: at(1) + 1,
        through_version: at(2),
        roots: { a: 1 },
        packs: ['p1'],
      },
    ]);
    // A fork of a fork: what its parent shares with an ancestor counts, and what the ancestor did after that does not.
    await keep('ckpt_other_future', parent.id, at(2) + 1, at(2) + 1);
    const head = await headOf(child.id);
    await keep('ckpt_own', child.id, head, head);
    expect(await begun(child.id, head)).toMatchObject({ from: head, through: head, missing: [] });
    expect(await begun(child.id, head - 1)).toMatchObject({ from: at(1) + 1, through: at(2) });
    expect(await begun(child.id, at(0))).toMatchObject({ from: at(0) });
    await world.pool.query('delete from checkpoints where session_id = $1', [parent.id]);
    await world.command('session', parent.id, 'delete', {});
    expect(await filesOf(child)).toHaveLength(2);
    expect(await begun(child.id, at(2))).toMatchObject({ from: at(1) + 1 });
    // Of files that were kept for an environment of the platform's a worker elsewhere knows nothing.
    const { id: far } = await world.command<{ id: string }>('environment', newId('environment'), 'create', {
      name: `far-${head}`,
      config: { type: 'self_hosted' },
    });
    const away = await fork(child.id, head, { environment_id: far });
    expect(away.forked_from).toMatchObject({ checkpoint: null, missing_tool_use_ids: [] });
    expect(await filesOf(away)).toEqual([]);
  });

  it('of a session in the middle of a turn leaves it alone: it answers once, and the fork nothing of it', async () => {
    const parent = await world.createSession({ initial_events: [say('RUN[sleep 60]'), say('next')] });
    await world.until(parent.id, (all) => types(all).includes('session.sandbox_attached'));
    const child = await fork(parent.id, await headOf(parent.id));
    const own = (await world.events(child.id)).slice(child.forked_from?.version);
    expect(types(own)).toEqual(['session.forked', 'agent.tool_result', 'session.status_idle']);
    expect(ofType(own, 'agent.tool_result')[0]?.data).toMatchObject({ is_error: true, outcome: 'cancelled' });
    expect(JSON.stringify(own[1]?.data)).toContain('Not run in this fork');
    expect(ofType(own, 'session.forked')[0]?.data.dropped_event_ids).toHaveLength(1);
    const all = await world.until(parent.id, idle());
    const [call] = ofType(all, 'agent.tool_use');
    expect(ofType(all, 'agent.tool_result')[0]?.data).toMatchObject({ outcome: 'completed' });
    expect(world.sandbox.executed.get(call?.id ?? '')).toBe(1);
    expect(texts(all)).toHaveLength(2);
    expect(types(all)).toContain('session.fork_created');
    expect(texts(await world.events(child.id))).toEqual([]);
    await sleep(700);
    expect((await viewAt(child.id))?.status).toBe('idle');
  });

  it('while the model writes shares no half message, and the parent’s text is not the fork’s', async () => {
    const parent = await world.createSession({ initial_events: [say('SLOW[20]')] });
    await sleep(300);
    const child = await fork(parent.id, await headOf(parent.id), { initial_events: [say('instead')] });
    expect(child.status).toBe('running');
    const all = await world.until(child.id, idle(2));
    expect(texts(all)).toEqual([expect.stringMatching(/^You said: instead/)]);
    const ends = ofType(all, 'span.model_request_end');
    expect(ends.map(({ data }) => data.is_error)).toEqual([true, false]);
    expect(texts(await world.until(parent.id, idle()))).toEqual([expect.stringMatching(/^word1 .* word20/)]);
  });

  it('may be another agent in another environment, with a title, metadata and messages of its own', async () => {
    const parent = await world.createSession({ title: 'first', metadata: { a: '1' }, initial_events: [say('hello')] });
    await world.until(parent.id, idle());
    const at = await headOf(parent.id);
    const other = await world.command<Agent>('agent', newId('agent'), 'create', {
      name: 'other',
      model: 'demo',
      system: 'be other',
      tools: [],
    });
    const environment = await world.command<{ id: string }>('environment', newId('environment'), 'create', {
      name: `other-${at}`,
    });
    const child = await fork(parent.id, at, {
      agent: other.id,
      environment_id: environment.id,
      title: 'second',
      metadata: { b: '2' },
      initial_events: [say('who are you?')],
    });
    expect(child).toMatchObject({
      agent: { id: other.id, version: 1 },
      environment_id: environment.id,
      title: 'second',
      metadata: { b: '2' },
      x_context_key: null,
    });
    await world.until(child.id, idle(3));
    const asked = world.model.calls.at(-1)?.body;
    expect(asked?.messages[0]).toMatchObject({ role: 'system', content: 'be other' });
    expect(asked?.tools).toBeUndefined();
    const changed = await world.command<Agent>('agent', other.id, 'update', { version: 1, system: 'be newer' });
    expect(changed.version).toBe(2);
    const older = await fork(child.id, await headOf(child.id), { agent: { type: 'agent', id: other.id, version: 1 } });
    expect(older.agent).toMatchObject({ version: 1, system: 'be other' });
    expect((await fork(child.id, 1)).agent.id).toBe(parent.agent.id);
  });

  it('has the files that are resources of the session there, and its own from then on', async () => {
    const parent = await world.createSession();
    const file = (id: string): MountedFile => ({
      id: `sesrsc_${id}`,
      type: 'file',
      file_id: `file_${id}`,
      mount_path: `/mnt/session/uploads/${id}`,
      created_at: '2026-01-01T00:00:00.000Z',
      updated_at: '2026-01-01T00:00:00.000Z',
      digest: 'd'.repeat(64),
      size_bytes: 1,
    });
    const service = new EventLog({ pool: world.pool, projections: [sessionProjection as never] });
    for (const resources of [[file('a')], [file('a'), file('b')]]) {
      const event = { id: newId('event'), type: 'session.resources_changed', data: { resources } };
      const append = { streamId: streamOf('session', parent.id), workspaceId: DEFAULT_WORKSPACE, events: [event] };
      await service.append({ appends: [append] as never });
    }
    const ids = async (version: number) => (await fork(parent.id, version)).resources.map(({ id }) => id);
    expect([await ids(1), await ids(2), await ids(3)]).toEqual([[], ['sesrsc_a'], ['sesrsc_a', 'sesrsc_b']]);
    const child = await fork(parent.id, 3);
    await world.command('session', child.id, 'remove-resource', { resourceId: 'sesrsc_a' });
    expect((await viewAt(child.id))?.resources?.map(({ id }) => id)).toEqual(['sesrsc_b']);
    expect((await viewAt(parent.id))?.resources).toHaveLength(2);
  });

  it('of an archived session is open; one that shares a context does not share it', async () => {
    const parent = await world.createSession({ x_context_key: 'team', initial_events: [say('hello')] });
    await world.until(parent.id, idle());
    await world.command('session', parent.id, 'archive', {});
    const child = await fork(parent.id, await headOf(parent.id));
    expect(child).toMatchObject({ status: 'idle', archived_at: null, x_context_key: null });
    await world.send(child.id, [say('again')]);
    expect(texts(await world.until(child.id, idle(3)))).toHaveLength(2);
  });

  it('of a fork of a fork has all of their events, and keeps them when those are deleted', async () => {
    const root = await world.createSession({ initial_events: [say('one')] });
    await world.until(root.id, idle());
    const child = await fork(root.id, await headOf(root.id), { initial_events: [say('two')] });
    await world.until(child.id, idle(3));
    const grandchild = await fork(child.id, await headOf(child.id), { initial_events: [say('three')] });
    const before = await world.until(grandchild.id, idle(5));
    expect(texts(before).map((text) => text.split('\n')[0])).toEqual(
      ['one', 'two', 'three'].map((word) => `You said: ${word}`),
    );
    for (const gone of [root.id, child.id]) await world.command('session', gone, 'delete', {});
    await expect(fork(child.id, 1)).rejects.toMatchObject({ code: 'session.not-found' });
    expect(await world.events(grandchild.id)).toEqual(before);
    // Also for a process that never saw the parents, and for the model.
    const other = await world.service('session-late');
    await world.stealLease(grandchild.id);
    const calls = world.model.calls.length;
    await world.send(grandchild.id, [say('four')]);
    expect(texts(await world.until(grandchild.id, idle(6)))).toHaveLength(4);
    expect(JSON.stringify(world.model.calls[calls]?.body.messages)).toContain('one');
    await world.stopService(other);
    const last = await fork(grandchild.id, 2);
    expect(last.forked_from).toMatchObject({ session_id: grandchild.id, version: 2 });
    expect(await world.log.ranges(streamOf('session', last.id))).toMatchObject([
      { source: streamOf('session', root.id) },
      { source: streamOf('session', last.id) },
    ]);
    const { rows } = await world.pool.query<{ root: string }>(
      `select fork_root as root from sessions where id = any ($1)`,
      [[grandchild.id, last.id]],
    );
    expect(rows).toEqual([{ root: root.id }, { root: root.id }]);
  });

  it('is one for a repeated request, whatever died between them', async () => {
    const parent = await world.createSession();
    const idempotency = { key: randomUUID(), attempt: 0, path: 'POST /fork', fingerprint: 'f' };
    const post = (rest: object = {}) => fork(parent.id, 1, { initial_events: [say('once')] }, { idempotency, ...rest });
    const first = await post();
    expect((await post()).id).toBe(first.id);
    await expect(post({ idempotency: { ...idempotency, fingerprint: 'g' } })).rejects.toMatchObject({
      code: 'idempotency.key-reused',
    });
    // The same command asked for again, by a gateway that got no answer.
    const command = { commandId: newId('command') };
    const id = newId('session');
    const body = { from: { session_id: parent.id, version: 1 } };
    const ask = (rest: object = {}) => world.command<Session>('session', id, 'fork', body, { ...command, ...rest });
    // Nobody hears the first one's answer any more; whether it is done or comes too late, those that ask again have it.
    const [, ...heard] = await Promise.allSettled([ask(), ask({ again: true }), ask({ again: true })]);
    for (const answer of heard) expect(answer).toMatchObject({ status: 'fulfilled', value: { id } });
    const forks = ofType(await world.events(parent.id), 'session.fork_created');
    expect(forks.map(({ data }) => data.fork_session_id)).toEqual([first.id, id]);
    expect(forks[0]?.metadata['actor']).toEqual({ type: 'api_key', id: 'apikey_spec' });
    const [own] = (await world.events(id)).slice(1);
    expect(own?.metadata['actor']).toEqual({ type: 'api_key', id: 'apikey_spec' });
  });

  it('is refused where it cannot be; nothing is left of it', async () => {
    const parent = await world.createSession();
    const count = async () => (await world.pool.query<{ count: string }>('select count(*) from streams')).rows;
    const gone = await world.command<{ id: string }>('environment', newId('environment'), 'create', { name: 'gone' });
    await world.command('environment', gone.id, 'archive', {});
    const before = await count();
    for (const [version, body, code, rest] of [
      [99, {}, 'session.no-such-version', {}],
      [0, {}, 'session.no-such-version', {}],
      [1, {}, 'session.not-found', { workspaceId: 'wrkspc_other' }],
      [1, { agent: newId('agent') }, 'agent.not-found', {}],
      [1, { environment_id: gone.id }, 'environment.archived', {}],
      [1, { environment_id: newId('environment') }, 'environment.not-found', {}],
    ] as const)
      await expect(fork(parent.id, version, body, rest)).rejects.toMatchObject({ code });
    expect(await count()).toEqual(before);
    expect(await headOf(parent.id)).toBe(1);
  });

  it('may be made many times at once of a session that works, each with all that it had then', async () => {
    const parent = await world.createSession({ initial_events: [say('RUN[echo 1] RUN[echo 2] RUN[echo 3]')] });
    const forks: Session[] = [];
    await Promise.all(
      Array.from({ length: 20 }, async () => {
        forks.push(await fork(parent.id, await headOf(parent.id), { initial_events: [say('go on')] }));
      }),
    );
    for (const { id } of forks) {
      const all = await world.until(
        id,
        (events) => texts(events.slice(events.findIndex(({ type }) => type === 'session.forked'))).length === 1,
      );
      expect(unanswered(all)).toEqual([]);
    }
    const all = await world.until(parent.id, idle());
    expect(ofType(all, 'session.fork_created')).toHaveLength(20);
    for (const call of ofType(all, 'agent.tool_use')) expect(world.sandbox.executed.get(call.id)).toBe(1);
  }, 60_000);

  it('of a session that takes longer to fold than a command may take is there when it is asked for again', async () => {
    const { id } = await world.createSession();
    const streamId = streamOf('session', id);
    for (let n = 0; n < 40; n++) {
      const events = Array.from({ length: 1_000 }, (_, i) => {
        return { id: `sevt_${id}_${n}_${i}`, type: 'agent.thinking', data: {} };
      });
      await world.log.append({ appends: [{ streamId, workspaceId: DEFAULT_WORKSPACE, events }] });
    }
    await rebuildProjection(world.pool, world.log, sessionProjection, { onlyStream: streamId });
    const command: Command = {
      commandId: newId('command'),
      workspaceId: DEFAULT_WORKSPACE,
      actor: { type: 'api_key', id: 'apikey_spec' },
      idempotency: null,
      traceparent: null,
      body: { from: { session_id: id, version: 40_001 } },
    };
    const subject = commandSubject('session', newId('session'), 'fork');
    const ask = (again: boolean) => world.bus.request<CommandReply>(subject, { ...command, again }, { timeoutMs: 400 });
    await expect(ask(false)).rejects.toMatchObject({ kind: 'unavailable' });
    await sleep(2_000);
    expect((await ask(true)).body).toMatchObject({ status: 'idle', forked_from: { version: 40_001 } });
  }, 60_000);

  it('compacts what it shares when that is too long, and its model still knows of the new workspace', async () => {
    const parent = await world.createSession({ initial_events: [say('hello')] });
    await world.until(parent.id, idle());
    const { answer } = world.model;
    const child = await fork(parent.id, await headOf(parent.id));
    world.model.answer = (call, response) => {
      const last = JSON.stringify(call.body.messages.at(-1)?.content ?? '');
      if (!last.includes('HUGE')) return false;
      return streamAnswer(response, { text: 'big', usage: { prompt_tokens: 10_000_000, completion_tokens: 1 } });
    };
    try {
      await world.send(child.id, [say('HUGE')]);
      await world.until(child.id, idle(3));
      const grandchild = await fork(child.id, await headOf(child.id));
      const before = world.model.calls.length;
      await world.send(grandchild.id, [say('and on')]);
      const all = await world.until(grandchild.id, idle(5));
      expect(types(all)).toContain('agent.thread_context_compacted');
      const told = world.model.calls.slice(before).at(-1)?.body.messages ?? [];
      expect(JSON.stringify(told[0]?.content)).toContain('Summary of the conversation so far');
      expect(told.slice(-2)).toMatchObject([
        { role: 'system', content: expect.stringContaining('forked from another') },
        { role: 'user' },
      ]);
    } finally {
      world.model.answer = answer;
    }
  });
});

describe('afterwards', () => {
  it('the log is whole, the read model equals a fresh fold, and rebuilding it changes nothing', async () => {
    expect(await checkLog(world.pool)).toEqual([]);
    expect(await compareProjection(world.pool, world.log, sessionProjection)).toEqual([]);
    const rows = async () => (await world.pool.query<{ id: string }>('select * from sessions order by id')).rows;
    const live = await rows();
    await world.pool.query(
      `update sessions set view = view - 'forkedFrom' || '{"status": "running"}', status = 'terminated'`,
    );
    expect((await compareProjection(world.pool, world.log, sessionProjection)).length).toBe(live.length);
    await rebuildProjection(world.pool, world.log, sessionProjection);
    expect(await rows()).toEqual(live);
  }, 120_000);
});
