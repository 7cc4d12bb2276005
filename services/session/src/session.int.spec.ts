import { randomBytes, randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  type Agent,
  ALL_SESSION_DELTAS,
  type ApiKeyResource,
  newId,
  type Session,
  type SessionEvent,
  streamOf,
} from '@holdfast/contracts';
import { checkLog, compareProjection } from '@holdfast/event-store';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { DEFAULT_WORKSPACE } from './migrations/bootstrap.ts';
import { sessionProjection } from './session/session.projection.ts';
import { idle, say, texts, toolset, types, World } from './test/world.ts';

let world: World;
beforeAll(async () => {
  world = await World.start();
  await world.service('session-1');
}, 180_000);
afterAll(async () => {
  await world.stop();
}, 60_000);

describe('a turn', () => {
  it('answers a message in order, and streams its text live', async () => {
    const session = await world.createSession();
    expect(session).toMatchObject({ type: 'session', status: 'idle', agent: { version: 1 }, x_context_key: null });
    const pieces: string[] = [];
    const listening = world.bus.subscribeLive<{ text: string }>(ALL_SESSION_DELTAS, (delta, subject) => {
      if (subject.includes(session.id)) pieces.push(delta.text);
    });
    await world.bus.flush();
    const sent = await world.send(session.id, [say('hello there')]);
    expect(sent.data).toMatchObject([{ type: 'user.message', processed_at: null }]);
    const all = await world.until(session.id, idle());
    expect(types(all)).toEqual([
      'session.created',
      'user.message',
      'session.turn_started',
      'session.message_processed',
      'session.status_running',
      'span.model_request_start',
      'agent.message',
      'span.model_request_end',
      'session.status_idle',
    ]);
    expect(texts(all)[0]).toMatch(/^You said: hello there/);
    await sleep(50);
    expect(pieces.join('')).toBe(texts(all)[0]);
    expect(all[6]?.id).toBe((all[5] as Extract<SessionEvent, { type: 'span.model_request_start' }>).data.message_id);
    await listening.stop();
    expect((await world.log.streamHead(streamOf('session', session.id)))?.leaseOwner).toBeNull();
  });

  it('starts with its initial events', async () => {
    const session = await world.createSession({ initial_events: [say('first')] });
    expect(session.status).toBe('running');
    expect(texts(await world.until(session.id, idle()))).toHaveLength(1);
  });

  it('runs tools one step each, each call once', async () => {
    const session = await world.createSession();
    await world.send(session.id, [say('RUN[echo one] WRITE[a.txt|b]')]);
    const all = await world.until(session.id, idle());
    const calls = all.filter(({ type }) => type === 'agent.tool_use');
    expect(calls).toHaveLength(2);
    for (const call of calls) expect(world.sandbox.executed.get(call.id)).toBe(1);
    expect(types(all).filter((type) => type === 'session.sandbox_attached')).toHaveLength(1);
    expect(texts(all).at(-1)).toMatch(/ran write/);
  });

  it('asks the model once for each step, and never drops a request of its own', async () => {
    const session = await world.createSession();
    const steps = 12;
    const before = world.model.calls.length;
    await world.send(session.id, [say(Array.from({ length: steps }, (_, i) => `RUN[echo ${i}]`).join(' '))]);
    const all = await world.until(session.id, idle());
    const ends = all.filter((event) => event.type === 'span.model_request_end');
    expect(ends.map((event) => event.data.is_error)).toEqual(Array.from({ length: steps + 1 }, () => false));
    expect(world.model.calls.length - before).toBe(steps + 1);
  });

  it('gives every queued message its own answer without going idle between them', async () => {
    const session = await world.createSession();
    await world.send(session.id, [say('SLOW[3]')]);
    await world.send(session.id, [say('second'), say('third')]);
    const all = await world.until(session.id, idle());
    expect(texts(all).map((text) => text.split('\n')[0])).toEqual([
      'word1 word2 word3',
      'You said: second',
      'You said: third',
    ]);
    expect(types(all).filter((type) => type === 'session.status_idle')).toHaveLength(1);
    expect(all.at(-1)?.type).toBe('session.status_idle');
  });

  it('hands a steering message to the running turn', async () => {
    const session = await world.createSession();
    await world.send(session.id, [say('SLOW[3] RUN[echo x] RUN[echo never]')]);
    await world.send(session.id, [say('stop that', { x_steer: true })]);
    const all = await world.until(session.id, idle());
    expect(texts(all).at(-1)).toMatch(/^You said: stop that/);
    expect(all.filter(({ type }) => type === 'agent.tool_use')).toHaveLength(1);
  });
});

describe('interrupt', () => {
  it('cuts the model call at once; nothing follows idle', async () => {
    const session = await world.createSession();
    await world.send(session.id, [say('SLOW[100]')]);
    await sleep(250);
    const at = Date.now();
    await world.send(session.id, [{ type: 'user.interrupt' }]);
    const all = await world.until(session.id, idle());
    expect(Date.now() - at).toBeLessThan(1_000);
    expect(texts(all)).toEqual([]);
    expect(types(all).slice(-3)).toEqual(['user.interrupt', 'span.model_request_end', 'session.status_idle']);
    await sleep(200);
    expect((await world.events(session.id)).length).toBe(all.length);
  });

  it('closes a running tool call with an error and goes on with what is queued', async () => {
    const session = await world.createSession();
    await world.send(session.id, [say('RUN[sleep 60]')]);
    await world.until(session.id, (all) => all.some(({ type }) => type === 'session.sandbox_attached'));
    await world.send(session.id, [{ type: 'user.interrupt' }, say('and now?')]);
    const all = await world.until(session.id, idle());
    expect(all.find(({ type }) => type === 'agent.tool_result')?.data).toMatchObject({
      is_error: true,
      outcome: 'cancelled',
    });
    expect(texts(all).at(-1)).toMatch(/^You said: and now/);
  });
});

describe('calls that wait for the client', () => {
  it('asks, runs on allow, tells the model on deny', async () => {
    const session = await world.createSession({}, await world.createAgent(toolset(['bash'])));
    await world.send(session.id, [say('RUN[echo one] RUN[echo two]')]);
    let all = await world.until(session.id, idle());
    const first = all.find(({ type }) => type === 'agent.tool_use');
    expect(all.at(-1)?.data).toEqual({ stop_reason: { type: 'requires_action', event_ids: [first?.id] } });
    expect(world.sandbox.executed.has(first?.id ?? '')).toBe(false);
    const allow = { type: 'user.tool_confirmation', tool_use_id: first?.id, result: 'allow' };
    const confirmed = await world.send(session.id, [allow]);
    all = await world.until(session.id, idle(2));
    expect(world.sandbox.executed.get(first?.id ?? '')).toBe(1);
    const again = await world.send(session.id, [allow]);
    expect(again.data[0]?.id).toBe(confirmed.data[0]?.id);
    await expect(world.send(session.id, [{ ...allow, result: 'deny' }])).rejects.toMatchObject({ kind: 'invalid' });
    const second = all.filter(({ type }) => type === 'agent.tool_use')[1];
    await world.send(session.id, [
      { type: 'user.tool_confirmation', tool_use_id: second?.id, result: 'deny', deny_message: 'no' },
    ]);
    all = await world.until(session.id, idle(3));
    expect(world.sandbox.executed.has(second?.id ?? '')).toBe(false);
    expect(all.filter(({ type }) => type === 'agent.tool_result')[1]?.data).toMatchObject({
      outcome: 'denied',
      is_error: true,
    });
  });

  it('takes the result of a custom tool from the client', async () => {
    const session = await world.createSession();
    await world.send(session.id, [say('ASK[lookup]')]);
    const all = await world.until(session.id, idle());
    const call = all.find(({ type }) => type === 'agent.custom_tool_use');
    await expect(
      world.send(session.id, [{ type: 'user.custom_tool_result', custom_tool_use_id: 'sevt_other', content: [] }]),
    ).rejects.toMatchObject({ kind: 'invalid' });
    await world.send(session.id, [
      { type: 'user.custom_tool_result', custom_tool_use_id: call?.id, content: [{ type: 'text', text: '42' }] },
    ]);
    expect(texts(await world.until(session.id, idle(2))).at(-1)).toMatch(/42$/);
  });
});

describe('model failures', () => {
  it('are tried again, then end the turn and say so', async () => {
    const session = await world.createSession();
    await world.send(session.id, [say('ERR[500]')]);
    const all = await world.until(session.id, idle());
    const found = types(all);
    expect(found.filter((type) => type === 'span.model_request_start')).toHaveLength(3);
    expect(found.filter((type) => type === 'session.status_rescheduled')).toHaveLength(2);
    expect(all.at(-1)?.data).toEqual({ stop_reason: { type: 'retries_exhausted' } });
    await world.send(session.id, [say('still there?')]);
    expect(texts(await world.until(session.id, idle(2))).at(-1)).toMatch(/^You said: still there/);
  });

  it('are not tried again when trying cannot help', async () => {
    const session = await world.createSession();
    await world.send(session.id, [say('ERR[400]')]);
    const all = await world.until(session.id, idle());
    expect(types(all).filter((type) => type === 'span.model_request_start')).toHaveLength(1);
    expect(all.find(({ type }) => type === 'session.error')?.data).toMatchObject({
      error: { retry_status: { type: 'exhausted' } },
    });
  });
});

describe('idempotency (T5)', () => {
  const idempotency = (key: string | null, attempt: number, fingerprint: string) => ({
    key,
    attempt,
    path: 'POST /v1/sessions',
    fingerprint,
  });

  it('stores a retried create and a retried send once', async () => {
    const agent = await world.createAgent();
    const body = { agent: agent.id, environment_id: await world.environmentId(), title: randomUUID() };
    const fingerprint = randomUUID();
    const create = (attempt: number) =>
      world.command<Session>('session', newId('session'), 'create', body, {
        idempotency: idempotency(null, attempt, fingerprint),
      });
    const first = await create(0);
    expect((await create(1)).id).toBe(first.id);
    expect((await create(1)).id).not.toBe(first.id);
    const key = randomUUID();
    const post = () => world.send(first.id, [say('once')], { idempotency: idempotency(key, 0, 'a') });
    const [one, two] = await Promise.all([post(), post()]);
    expect(two).toEqual(one);
    const all = await world.until(first.id, idle());
    expect(all.filter(({ type }) => type === 'user.message')).toHaveLength(1);
    await expect(world.send(first.id, [say('other')], { idempotency: idempotency(key, 0, 'b') })).rejects.toMatchObject(
      {
        code: 'idempotency.key-reused',
      },
    );
  });
});

describe('a command that is asked for again', () => {
  it('was done, or is being done: it is done once and answered', async () => {
    const other = await world.service('session-2');
    /** Both at once; nobody waits for the first one's answer any more, so it may as well be refused. */
    const again = async <R>(
      aggregate: 'agent' | 'api_key' | 'session',
      id: string,
      verb: string,
      body: object,
    ): Promise<{ answer: R; repeat: () => Promise<R> }> => {
      const commandId = newId('command');
      const repeat = () => world.command<R>(aggregate, id, verb, body, { commandId, again: true });
      const [first, second] = await Promise.allSettled([
        world.command<R>(aggregate, id, verb, body, { commandId }),
        repeat(),
      ]);
      if (second.status === 'rejected') throw second.reason;
      // Durations are of the moment.
      if (first.status === 'fulfilled') expect({ ...first.value, stats: 0 }).toEqual({ ...second.value, stats: 0 });
      return { answer: second.value, repeat };
    };
    for (let n = 0; n < 8; n++) {
      const agent = await again<Agent>('agent', newId('agent'), 'create', {
        name: 'spec',
        model: 'demo',
        tools: toolset(),
      });
      expect(await agent.repeat()).toEqual(agent.answer);
      const minted = () => ({ hash: randomBytes(32).toString('hex'), hint: 'hf_…' });
      const key = await again<ApiKeyResource>('api_key', newId('apiKey'), 'create', { name: 'spec', ...minted() });
      expect(await key.repeat()).toEqual(key.answer);
      const linkId = newId('apiKey');
      await again('api_key', linkId, 'create-link', { parent_id: key.answer.id, ...minted() });
      const signedIn = await again('api_key', linkId, 'redeem-link', { session_id: newId('apiKey'), ...minted() });
      expect(await signedIn.repeat()).toEqual(signedIn.answer);
      const { answer: session } = await again<Session>('session', newId('session'), 'create', {
        agent: agent.answer.id,
        environment_id: await world.environmentId(),
      });
      const sent = await again<object>('session', session.id, 'send-events', { events: [say('hello')] });
      await world.until(session.id, idle());
      // Long after: the turn that it started is over.
      expect(await sent.repeat()).toEqual(sent.answer);
      expect(texts(await world.events(session.id))).toHaveLength(1);
      const archived = await again<Session>('session', session.id, 'archive', {});
      expect(archived.answer.status).toBe('terminated');
      expect(types(await world.events(session.id)).filter((type) => type === 'user.message')).toHaveLength(1);
    }
    await world.stopService(other);
  }, 60_000);
});

describe('life cycle', () => {
  it('archives and deletes idle sessions only, and only within the workspace', async () => {
    const session = await world.createSession();
    await world.send(session.id, [say('SLOW[4]')]);
    await expect(world.command('session', session.id, 'archive', {})).rejects.toMatchObject({
      code: 'session.running',
    });
    await world.until(session.id, idle());
    await expect(
      world.command('session', session.id, 'archive', {}, { workspaceId: 'wrkspc_other' }),
    ).rejects.toMatchObject({
      kind: 'not-found',
    });
    expect(await world.command<Session>('session', session.id, 'archive', {})).toMatchObject({ status: 'terminated' });
    await expect(world.send(session.id, [say('hi')])).rejects.toMatchObject({ code: 'session.archived' });
    expect(await world.command('session', session.id, 'delete', {})).toEqual({
      id: session.id,
      type: 'session_deleted',
    });
    await expect(world.send(session.id, [say('hi')])).rejects.toMatchObject({ kind: 'not-found' });
  });

  it('keeps agent versions and refuses a stale one', async () => {
    const agent = await world.createAgent();
    const next = await world.command<Agent>('agent', agent.id, 'update', { version: 1, name: 'renamed' });
    expect(next).toMatchObject({ version: 2, name: 'renamed' });
    await expect(world.command('agent', agent.id, 'update', { version: 1, name: 'x' })).rejects.toMatchObject({
      code: 'agent.version-conflict',
    });
    expect(await world.command<Agent>('agent', agent.id, 'update', { name: 'renamed' })).toMatchObject({ version: 2 });
    const pinned = await world.createSession({ agent: { type: 'agent', id: agent.id, version: 1 } });
    expect(pinned.agent).toMatchObject({ version: 1, name: 'spec' });
    await expect(
      world.command('environment', newId('environment'), 'create', { name: 'default' }),
    ).rejects.toMatchObject({
      code: 'environment.name-taken',
    });
    await expect(world.command('environment', await world.environmentId(), 'delete', {})).rejects.toMatchObject({
      code: 'environment.in-use',
    });
  });
});

describe('events of a newer release (L7)', () => {
  it('park their session, and only it, until a release that reads them acts on it', async () => {
    const session = await world.createSession();
    const streamId = streamOf('session', session.id);
    const { streams } = await world.log.append({
      appends: [
        {
          streamId,
          workspaceId: DEFAULT_WORKSPACE,
          events: [{ id: `sevt_newer_${session.id}`, type: 'session.paused', data: {} }],
        },
      ],
    });
    await expect(world.send(session.id, [say('hello')])).rejects.toMatchObject({
      kind: 'unavailable',
      code: 'event.newer-version',
    });
    expect((await world.log.streamHead(streamId))?.version).toBe(streams[0]?.toVersion);
    await world.pool.query('delete from events where stream_id = $1 and version = $2', [
      streamId,
      streams[0]?.toVersion,
    ]);
    await world.pool.query('update streams set version = version - 1 where stream_id = $1', [streamId]);
    await world.send(session.id, [say('hello')]);
    expect(texts(await world.until(session.id, idle()))[0]).toMatch(/^You said: hello/);
  });
});

describe('takeover', () => {
  it('continues the turn of a worker that stopped renewing, within its lease and a second', async () => {
    const session = await world.createSession();
    await world.send(session.id, [say('SLOW[15] RUN[echo after]')]);
    await sleep(200);
    // A second replica; the first one freezes: its lease is stolen as if it had run out.
    const other = await world.service('session-2');
    await world.stealLease(session.id);
    const all = await world.until(session.id, idle(), 30_000);
    const started = all.filter(({ type }) => type === 'session.turn_started');
    expect(started.at(-1)?.data).toMatchObject({ takeover: true, generation: 2 });
    const calls = all.filter(({ type }) => type === 'agent.tool_use');
    for (const call of calls) expect(world.sandbox.executed.get(call.id)).toBe(1);
    expect(all.at(-1)?.type).toBe('session.status_idle');
    expect(all.map(({ version }) => version)).toEqual(all.map((_, i) => i + 1));
    await world.stopService(other);
  }, 60_000);

  it('hands turns over on shutdown', async () => {
    const leaving = await world.service('session-3');
    const sessions = await Promise.all(
      Array.from({ length: 8 }, () => world.createSession({ initial_events: [say('SLOW[8] RUN[echo x]')] })),
    );
    await sleep(150);
    await world.stopService(leaving);
    for (const session of sessions) {
      const all = await world.until(session.id, idle(), 30_000);
      expect(texts(all).at(-1)).toMatch(/^Done/);
    }
  }, 60_000);
});

describe('afterwards', () => {
  it('the log is whole and the read model equals a fresh fold', async () => {
    expect(await checkLog(world.pool)).toEqual([]);
    expect(await compareProjection(world.pool, world.log, sessionProjection)).toEqual([]);
  });
});
