import { LIMITS } from '@holdfast/contracts';
import { type TestDatabase, testDatabase } from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import fc from 'fast-check';
import type pg from 'pg';
import {
  checkLog,
  compareProjection,
  createLogPool,
  derivedEventId,
  EventLog,
  migrate,
  type NewEvent,
  type Projection,
  rebuildProjection,
} from './index.ts';

const WORKSPACE = 'wrkspc_one';
let database: TestDatabase;
let pool: pg.Pool;
let log: EventLog;
let counter = 0;
const events = (count: number): NewEvent[] =>
  Array.from({ length: count }, () => {
    const n = counter++;
    return { id: derivedEventId('cmd_fork', n), type: n % 3 === 0 ? 'third' : 'other', data: { n } };
  });
const unique = (name: string): string => `session-${name}-${counter++}`;

/** A stream of so many events; `at` = how much of the other stream it begins with. */
async function stream(count: number, of?: string, at = 0): Promise<string> {
  const streamId = unique('s');
  const forkOf = of === undefined ? {} : { forkOf: of };
  const append = { streamId, workspaceId: WORKSPACE, expectedVersion: at, events: events(count), ...forkOf };
  await log.append({ appends: [append] });
  return streamId;
}
const read = async (streamId: string, rest: object = {}, from = log) =>
  (await from.readStream(streamId, { afterVersion: 0, ...rest })).map(({ id, version }) => `${version} ${id}`);

beforeAll(async () => {
  database = await testDatabase();
  pool = createLogPool({ connectionString: database.url, applicationName: 'spec' });
  await migrate(pool);
  log = new EventLog({ pool });
}, 90_000);
afterAll(async () => {
  await log.close();
  await pool.end();
  await database.drop();
});

describe('a forked stream', () => {
  it('begins with the other’s events under its own id, and its versions go on from there', async () => {
    const parent = await stream(6);
    const child = await stream(2, parent, 4);
    await log.append({ appends: [{ streamId: child, workspaceId: WORKSPACE, expectedVersion: 6, events: events(1) }] });
    const shared = await read(parent);
    const all = await read(child);
    expect(all.slice(0, 4)).toEqual(shared.slice(0, 4));
    expect(all.map((line) => Number(line.split(' ')[0]))).toEqual([1, 2, 3, 4, 5, 6, 7]);
    const whole = await log.readStream(child, { afterVersion: 0 });
    expect(new Set(whole.map(({ streamId }) => streamId))).toEqual(new Set([child]));
    expect(await read(parent)).toEqual(shared);
    // No row was copied.
    const { rows } = await pool.query('select 1 from events where stream_id = $1', [child]);
    expect(rows).toHaveLength(3);
    expect(await log.ranges(parent)).toHaveLength(1);
    expect(await log.ranges(child)).toMatchObject([
      { source: parent, after: 0, through: 4 },
      { source: child, after: 4 },
    ]);
  });

  it('reads the same from any version, in pages of any size, up to any version, by type, and in a process that is new', async () => {
    const root = await stream(9);
    const first = await stream(4, root, 5);
    const second = await stream(3, first, 7);
    const beside = await stream(3, first, 2);
    for (const streamId of [root, first, second, beside]) {
      const whole = await log.readStream(streamId, { afterVersion: 0 });
      expect(whole.map(({ version }) => version)).toEqual(whole.map((_, n) => n + 1));
      await fc.assert(
        fc.asyncProperty(
          fc.nat(whole.length + 1),
          fc.nat(whole.length + 1),
          fc.integer({ min: 1, max: 12 }),
          fc.boolean(),
          fc.boolean(),
          async (afterVersion, throughVersion, limit, isNew, byType) => {
            const from = isNew ? new EventLog({ pool }) : log;
            const wanted = whole
              .filter(({ version, type }) => version > afterVersion && (!byType || type === 'third'))
              .filter(({ version }) => version <= throughVersion)
              .slice(0, limit);
            const types = byType ? { types: ['third'] } : {};
            expect(await from.readStream(streamId, { afterVersion, throughVersion, limit, ...types })).toEqual(wanted);
            if (byType) return;
            const raw = await from.readStreamRaw(streamId, { afterVersion, throughVersion, limit });
            expect(raw.map(({ id, version, data }) => [id, version, JSON.parse(data) as unknown])).toEqual(
              wanted.map(({ id, version, data }) => [id, version, data]),
            );
          },
        ),
        { numRuns: 60 },
      );
      const other = new EventLog({ pool });
      for (const event of whole) expect(await other.versionOf(streamId, event.id)).toBe(event.version);
    }
    const after = (await log.readStream(root, { afterVersion: 5 }))[0];
    expect(await log.versionOf(first, after?.id ?? '')).toBeNull();
    expect(await log.versionOf(first, 'sevt_none')).toBeNull();
  });

  it('shares with whoever holds the events: a fork below its parent’s fork point is one of the grandparent', async () => {
    const root = await stream(9);
    const child = await stream(4, root, 5);
    const low = await stream(1, child, 3);
    const edge = await stream(1, child, 5);
    const high = await stream(1, child, 8);
    expect((await log.ranges(low)).map(({ source }) => source)).toEqual([root, low]);
    expect((await log.ranges(edge)).map(({ source }) => source)).toEqual([root, edge]);
    expect((await log.ranges(high)).map(({ source }) => source)).toEqual([root, child, high]);
  });

  it('is read from its shared events, its own last ones, or nothing at the end, in one query each', async () => {
    const parent = await stream(20);
    const child = await stream(5, parent, 15);
    await read(child);
    const asked: string[] = [];
    const counted = new Proxy(pool, {
      get: (target, name) => {
        const value: unknown = Reflect.get(target, name);
        if (name !== 'query') return value;
        return (...all: unknown[]) => {
          asked.push(JSON.stringify(all[0]));
          return (value as (...every: unknown[]) => unknown).apply(target, all);
        };
      },
    });
    const other = new EventLog({ pool: counted });
    const queries = async (streamId: string, rest: object): Promise<number> => {
      asked.length = 0;
      await read(streamId, rest, other);
      return asked.length;
    };
    // What shares nothing costs what it did before forks were: one query, also at its end.
    for (const rest of [{}, { afterVersion: 7 }, { afterVersion: 20 }, { limit: 3 }])
      expect(await queries(parent, rest)).toBe(1);
    expect(await queries(child, { afterVersion: 16 })).toBe(1);
    expect(await queries(child, {})).toBe(3);
    expect(await queries(child, {})).toBe(1);
    expect(await queries(child, { afterVersion: 15 })).toBe(1);
  });

  it('is refused at a version that is not there, in another workspace, twice, and too deep; nothing is left of it', async () => {
    const parent = await stream(3);
    const attempt = (rest: object) =>
      log.append({
        appends: [
          {
            streamId: unique('no'),
            workspaceId: WORKSPACE,
            expectedVersion: 2,
            events: events(1),
            forkOf: parent,
            ...rest,
          },
        ],
      });
    const before = await pool.query('select count(*) from streams');
    for (const rest of [
      { expectedVersion: 4 },
      { expectedVersion: 0 },
      { workspaceId: 'wrkspc_two' },
      { forkOf: 'session-none' },
    ])
      await expect(attempt(rest)).rejects.toMatchObject({ code: 'log.no-parent' });
    expect((await pool.query('select count(*) from streams')).rows).toEqual(before.rows);
    const child = await stream(1, parent, 2);
    await expect(attempt({ streamId: child })).rejects.toMatchObject({ code: 'log.statement-conflict' });
    let deepest = parent;
    for (let depth = 1; depth <= LIMITS.forkDepth; depth++) deepest = await stream(1, deepest, 2 + depth);
    expect(await read(deepest)).toHaveLength(LIMITS.forkDepth + 3);
    await expect(attempt({ forkOf: deepest, expectedVersion: LIMITS.forkDepth + 3 })).rejects.toMatchObject({
      code: 'log.fork-depth',
    });
    // An ancestor of it can still be forked, and the deepest one below its own events.
    await stream(1, deepest, LIMITS.forkDepth + 2);
  });

  it('is stored once when it is asked for twice at once with the same events (L2)', async () => {
    const parent = await stream(3);
    const append = {
      streamId: unique('twin'),
      workspaceId: WORKSPACE,
      expectedVersion: 2,
      events: events(2),
      forkOf: parent,
    };
    const other = new EventLog({ pool });
    const both = await Promise.allSettled([log, other].map((one) => one.append({ appends: [append] })));
    expect(both.filter(({ status }) => status === 'fulfilled').length).toBeGreaterThan(0);
    expect(await read(append.streamId)).toHaveLength(4);
  });

  it('leaves its neighbours of a batch alone, and commits with another stream’s events or not at all', async () => {
    const parent = await stream(3);
    const [good, bad, plain] = [unique('good'), unique('bad'), unique('plain')];
    const fork = (streamId: string, expectedVersion: number) => ({
      appends: [
        { streamId, workspaceId: WORKSPACE, expectedVersion, events: events(1), forkOf: parent },
        { streamId: parent, workspaceId: WORKSPACE, events: events(1) },
      ],
    });
    const one = { appends: [{ streamId: plain, workspaceId: WORKSPACE, expectedVersion: 0, events: events(1) }] };
    const results = await Promise.allSettled([log.append(one), log.append(fork(good, 3)), log.append(fork(bad, 9))]);
    expect(results.map(({ status }) => status)).toEqual(['fulfilled', 'fulfilled', 'rejected']);
    expect(await read(good)).toHaveLength(4);
    expect((await log.streamHead(parent))?.version).toBe(4);
    expect(await log.streamHead(bad)).toBeNull();
  });

  it('is whole for the check, which sees what a prefix misses', async () => {
    const parent = await stream(5);
    const child = await stream(2, parent, 3);
    expect(await checkLog(pool)).toEqual([]);
    await pool.query('update stream_prefixes set through_version = 9 where stream_id = $1', [child]);
    expect((await checkLog(pool)).map(({ streamId }) => streamId)).toEqual([child, child]);
    await pool.query('update stream_prefixes set through_version = 3, after_version = 1 where stream_id = $1', [child]);
    expect(await checkLog(pool)).toEqual([{ streamId: child, fault: 'a gap in what it shares' }]);
    await pool.query('update stream_prefixes set after_version = 0 where stream_id = $1', [child]);
    expect(await checkLog(pool)).toEqual([]);
  });

  it('is rebuilt from all of its events', async () => {
    const rows = new Map<string, number>();
    const counts: Projection<number> = {
      name: 'counts',
      tables: [],
      streamPrefix: 'session-',
      fold: (count = 0) => count + 1,
      load: (_reader, ids) =>
        Promise.resolve(new Map(ids.flatMap((id) => (rows.has(id) ? [[id, rows.get(id) ?? 0]] : [])))),
      save: (_reader, states) => {
        for (const [id, count] of states) if (count !== undefined) rows.set(id, count);
        return Promise.resolve();
      },
    };
    const parent = await stream(4);
    const child = await stream(2, parent, 4);
    await rebuildProjection(pool, log, counts as never);
    expect([rows.get(parent), rows.get(child)]).toEqual([4, 6]);
    expect(await compareProjection(pool, log, counts as never)).toEqual([]);
  });
});
