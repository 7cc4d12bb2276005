import { randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  type Agent,
  type EnvironmentKeyResource,
  newId,
  type SessionEvent,
  type Work,
  type WorkHeartbeat,
} from '@holdfast/contracts';
import { compareProjection } from '@holdfast/event-store';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import { sessionProjection } from '../session/session.projection.ts';
import { ofType, say, texts, toolset, types, World } from '../test/world.ts';

const LEASE_MS = 1_000;

let world: World;
let agent: Agent;
let environmentId: string;
let keyId: string;
beforeAll(async () => {
  world = await World.start();
  await world.service('session-1', { WORK_LEASE_MS: LEASE_MS });
  await world.service('session-2', { WORK_LEASE_MS: LEASE_MS });
  agent = await world.createAgent();
}, 180_000);
afterAll(async () => {
  await world.stop();
}, 60_000);
beforeEach(async () => {
  environmentId = newId('environment');
  await world.command('environment', environmentId, 'create', {
    name: environmentId,
    config: { type: 'self_hosted' },
  });
  const hash = randomBytes(32).toString('hex');
  const body = { name: 'workers', hash, hint: 'hfe_…', environment_id: environmentId };
  keyId = (await world.command<EnvironmentKeyResource>('api_key', newId('apiKey'), 'create', body)).id;
});

const work = <R>(verb: string, body: object, rest: object = {}): Promise<R> =>
  world.command<R>('environment', environmentId, `${verb}-work`, body, rest);
function poll(body: object = {}, rest: object = {}): Promise<Work | null> {
  const token = { id: newId('apiKey'), hash: randomBytes(32).toString('hex'), hint: 'hfw_…', parent_id: keyId };
  return work('poll', { worker_id: 'one', block_ms: 0, reclaim_older_than_ms: 5_000, token, ...body }, rest);
}
/** What there is, or will be in a moment: its session's events may be seen before its worker is wanted. */
const acknowledged = async (): Promise<Work> => {
  const item = await poll({ block_ms: 999 });
  return work<Work>('ack', { work_id: item?.id });
};
const beat = (item: Work, expected: string | null, repeated = false) =>
  work<WorkHeartbeat>('heartbeat', { work_id: item.id, expected, ttl_seconds: null, repeated });
const stop = (item: Work) => work<Work>('stop', { work_id: item.id, now: true });
async function newSession(text: string, tools = agent): Promise<string> {
  const session = await world.createSession({ environment_id: environmentId, initial_events: [say(text)] }, tools);
  return session.id;
}
const waits =
  (times = 1) =>
  (all: readonly SessionEvent[]) =>
    ofType(all, 'session.status_idle').filter(({ data }) => data.stop_reason.type === 'requires_action').length >=
    times;
const ends = (all: readonly SessionEvent[]): boolean =>
  ofType(all, 'session.status_idle').some(({ data }) => data.stop_reason.type === 'end_turn');
const result = (id: string | undefined, text: string) => ({
  type: 'user.tool_result',
  tool_use_id: id,
  content: [{ type: 'text', text }],
});

describe('the work of a self-hosted session', () => {
  it('is taken when a call waits, and the turn goes on with the result', async () => {
    const id = await newSession('RUN[x]');
    const waiting = await world.until(id, waits());
    const [call] = ofType(waiting, 'agent.tool_use');
    expect(types(waiting).slice(-2)).toEqual(['agent.tool_use', 'session.status_idle']);
    expect(waiting.at(-1)?.data).toEqual({ stop_reason: { type: 'requires_action', event_ids: [call?.id] } });
    const item = await acknowledged();
    expect(item).toMatchObject({ state: 'starting', data: { type: 'session', id }, environment_id: environmentId });
    expect(await poll()).toBeNull();
    await world.send(id, [result(call?.id, 'from afar')]);
    const all = await world.until(id, ends);
    expect(texts(all).at(-1)).toContain('from afar');
    expect(all.at(-1)?.type).toBe('session.status_idle');
    expect(await stop(item)).toMatchObject({ state: 'stopped' });
    expect(await stop(item)).toMatchObject({ state: 'stopped' });
    expect(types(await world.events(id)).slice(-1)).toEqual(['session.worker_detached']);
    expect(await poll()).toBeNull();
    expect(world.sandbox.executed.size).toBe(0);
  });

  it('waits for the worker: a poll that blocks answers as soon as there is some', async () => {
    const asked = poll({ block_ms: 999 });
    await sleep(100);
    const id = await newSession('RUN[x]');
    await world.until(id, waits());
    const item = (await asked) ?? (await poll({ block_ms: 999 }));
    expect(item?.data.id).toBe(id);
  });

  it('is not made for what the platform runs, for a call that nobody confirmed, and for custom tools', async () => {
    const asking = await world.createAgent(toolset(['bash']));
    const ids = [await newSession('RUN[x]', asking), await newSession('ASK[lookup]')];
    for (const id of ids) await world.until(id, waits());
    expect(await poll()).toBeNull();
    const [call] = ofType(await world.events(ids[0] ?? ''), 'agent.tool_use');
    await world.send(ids[0] ?? '', [{ type: 'user.tool_confirmation', tool_use_id: call?.id, result: 'allow' }]);
    expect((await poll())?.data.id).toBe(ids[0]);
  });

  it('that nobody acknowledges in time is taken again; the late worker is refused', async () => {
    const id = await newSession('RUN[x]');
    await world.until(id, waits());
    const first = await poll();
    const second = await poll({ reclaim_older_than_ms: 0 });
    expect([second?.data.id, second?.id === first?.id]).toEqual([id, false]);
    await expect(work('ack', { work_id: first?.id })).rejects.toMatchObject({ code: 'work.stopped' });
    expect(await work('ack', { work_id: second?.id })).toMatchObject({ state: 'starting' });
    expect(ofType(await world.events(id), 'session.worker_attached')).toHaveLength(1);
  });

  it('is one item for a poll that was asked again', async () => {
    await world.until(await newSession('RUN[x]'), waits());
    const token = { id: newId('apiKey'), hash: randomBytes(32).toString('hex'), hint: 'hfw_…', parent_id: keyId };
    const commandId = newId('command');
    const first = await poll({ token }, { commandId });
    expect(await poll({ token }, { commandId, again: true })).toEqual(first);
  });
});

describe('a lease', () => {
  it('goes on with heartbeats that name the one before, and is lost by others', async () => {
    await world.until(await newSession('RUN[x]'), waits());
    const item = await acknowledged();
    await expect(beat(item, new Date().toISOString())).rejects.toMatchObject({ kind: 'precondition' });
    const first = await beat(item, 'NO_HEARTBEAT');
    expect(first).toMatchObject({ lease_extended: true, state: 'active', ttl_seconds: 1 });
    expect(await beat(item, 'NO_HEARTBEAT', true)).toEqual(first);
    await sleep(5);
    const second = await beat(item, first.last_heartbeat);
    await expect(beat(item, first.last_heartbeat)).rejects.toMatchObject({
      code: 'work.lease-lost',
      details: { current_state: { last_heartbeat: second.last_heartbeat, state: 'active', lease_extended: false } },
    });
    expect(await work('stop', { work_id: item.id, now: false })).toMatchObject({ state: 'stopping' });
    expect(await beat(item, 'NO_HEARTBEAT')).toMatchObject({ state: 'stopping', lease_extended: false });
    await stop(item);
  });

  it('that runs out closes the calls that its worker may have begun, with one result each, and the rest waits', async () => {
    const id = await newSession('RUN[first] RUN[second]');
    await world.until(id, waits());
    const item = await acknowledged();
    await beat(item, 'NO_HEARTBEAT');
    const all = await world.until(id, (events) => waits(2)(events));
    const [lost] = ofType(all, 'user.tool_result');
    expect(lost?.data).toMatchObject({ is_error: true, outcome: 'unknown' });
    expect(ofType(all, 'session.worker_detached').map(({ data }) => data.reason)).toEqual(['lost']);
    await expect(world.send(id, [result(lost?.data.tool_use_id, 'too late')])).rejects.toMatchObject({
      code: 'session.call-answered',
    });
    // The second call was made after the first worker was gone: the next one may run it.
    const [, second] = ofType(all, 'agent.tool_use');
    expect(
      await work('heartbeat', { work_id: item.id, expected: null, ttl_seconds: null, repeated: false }),
    ).toMatchObject({ state: 'stopped', lease_extended: false });
    const next = await acknowledged();
    expect(next.data.id).toBe(id);
    await world.send(id, [result(second?.id, 'done')]);
    const done = await world.until(id, ends);
    expect(ofType(done, 'user.tool_result').map(({ data }) => data.tool_use_id)).toEqual(
      ofType(done, 'agent.tool_use').map(({ id: call }) => call),
    );
    await stop(next);
  });

  it('that ends before its worker could begin leaves the calls as they are', async () => {
    const asking = await world.createAgent(toolset(['bash']));
    const id = await newSession('RUN[x]', asking);
    const [call] = ofType(await world.until(id, waits()), 'agent.tool_use');
    const other = await newSession('RUN[y]');
    await world.until(other, waits());
    const item = await acknowledged();
    expect(item.data.id).toBe(other);
    await stop(item);
    await world.until(other, (all) => ofType(all, 'user.tool_result').length === 1);
    await world.send(id, [{ type: 'user.tool_confirmation', tool_use_id: call?.id, result: 'allow' }]);
    expect(ofType(await world.events(id), 'user.tool_result')).toEqual([]);
    expect((await poll())?.data.id).toBe(id);
  });

  it('of an archived session ends without a trace in it', async () => {
    const id = await newSession('RUN[x]');
    await world.until(id, waits());
    const item = await acknowledged();
    await world.command('session', id, 'archive', {});
    const archived = types(await world.events(id));
    expect(archived.slice(-2)).toEqual(['user.tool_result', 'session.status_terminated']);
    expect(await stop(item)).toMatchObject({ state: 'stopped' });
    expect(types(await world.events(id))).toEqual(archived);
  });
});

describe('an interrupt', () => {
  it('closes what waits for a worker as the worker would, and the turn is over', async () => {
    const id = await newSession('RUN[x]');
    await world.until(id, waits());
    const item = await acknowledged();
    await world.send(id, [{ type: 'user.interrupt' }]);
    const all = await world.until(id, ends);
    expect(types(all).slice(-3)).toEqual(['user.interrupt', 'user.tool_result', 'session.status_idle']);
    expect(ofType(all, 'user.tool_result')[0]?.data).toMatchObject({ outcome: 'unknown', is_error: true });
    await stop(item);
  });

  it('denies what a worker holds for a confirmation, so that it lets go', async () => {
    const id = await newSession('RUN[x]', await world.createAgent(toolset(['bash'])));
    await world.until(id, waits());
    await world.send(id, [{ type: 'user.interrupt' }]);
    const all = await world.until(id, ends);
    expect(types(all).slice(-4)).toEqual([
      'user.interrupt',
      'user.tool_confirmation',
      'agent.tool_result',
      'session.status_idle',
    ]);
  });
});

describe('a fork of a self-hosted session', () => {
  it('begins with the other one’s waiting call closed as not run here, and is served by a worker of its own', async () => {
    const parent = await newSession('RUN[x]');
    const { length: version } = await world.until(parent, waits());
    const item = await acknowledged();
    const fork = newId('session');
    await world.command('session', fork, 'fork', {
      from: { session_id: parent, version },
      initial_events: [say('RUN[y]')],
    });
    const own = await world.until(fork, (all) => waits()(all.filter((event) => event.streamId.endsWith(fork))));
    const [closed] = ofType(own, 'user.tool_result');
    expect(closed?.data).toMatchObject({
      outcome: 'cancelled',
      content: [{ text: expect.stringMatching(/^Not run in/) }],
    });
    const next = await acknowledged();
    expect([item.data.id, next.data.id]).toEqual([parent, fork]);
    await stop(item);
    expect(ofType(await world.events(fork), 'user.tool_result')).toHaveLength(1);
    await stop(next);
  });
});

it('the read model of self-hosted sessions is what their events say', async () => {
  expect(await compareProjection(world.pool, world.log, sessionProjection)).toEqual([]);
});
