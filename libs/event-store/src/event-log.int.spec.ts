import { join } from 'node:path';
import { type StoredEvent } from '@holdfast/contracts';
import { startPostgres, type TestDatabase, testDatabase, testRunDir } from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import fc from 'fast-check';
import type pg from 'pg';
import {
  assertLogUsable,
  checkLog,
  createLogPool,
  derivedEventId,
  EventLog,
  LOG_START,
  migrate,
  type NewEvent,
} from './index.ts';

const WORKSPACE = 'wrkspc_one';
let counter = 0;
const event = (type = 'test.happened', data: NewEvent['data'] = {}): NewEvent => ({
  id: derivedEventId('cmd_spec', counter++),
  type,
  data,
});
const unique = (name: string): string => `session-${name}-${counter++}`;

describe('EventLog', () => {
  let database: TestDatabase;
  let pool: pg.Pool;
  let log: EventLog;
  const committed: StoredEvent[] = [];

  beforeAll(async () => {
    database = await testDatabase();
    pool = createLogPool({ connectionString: database.url, applicationName: 'spec', max: 20 });
    await migrate(pool);
    log = new EventLog({ pool, onCommitted: (events) => committed.push(...events) });
  }, 90_000);
  afterAll(async () => {
    await log.close();
    await pool.end();
    await database.drop();
  });

  const one = async (streamId: string, events: NewEvent[], rest: object = {}) =>
    (await log.append({ appends: [{ streamId, workspaceId: WORKSPACE, events, ...rest }] })).streams[0];

  it('stores events gap-free and returns them as they are read', async () => {
    const streamId = unique('read');
    const first = await one(streamId, [event('a', { n: 1 }), event('b', { text: 'ä😀' })], { expectedVersion: 0 });
    const second = await one(streamId, [event('c')], { expectedVersion: 2 });
    expect(first).toMatchObject({ fromVersion: 0, toVersion: 2 });
    expect(second).toMatchObject({ fromVersion: 2, toVersion: 3 });
    const read = await log.readStream(streamId, { afterVersion: 0 });
    expect(read).toEqual([...(first?.events ?? []), ...(second?.events ?? [])]);
    expect(read.map(({ version }) => version)).toEqual([1, 2, 3]);
    expect(await log.readStream(streamId, { afterVersion: 1, limit: 1 })).toHaveLength(1);
    expect(await log.readStream(streamId, { afterVersion: 0, types: ['b'] })).toMatchObject([{ version: 2 }]);
    const raw = await log.readStreamRaw(streamId, { afterVersion: 1 });
    expect(raw.map((row) => ({ ...row, data: JSON.parse(row.data) as unknown }))).toMatchObject([
      { version: 2, type: 'b', data: { text: 'ä😀' }, recordedAt: read[1]?.recordedAt },
      { version: 3 },
    ]);
    expect(await log.findEvent(read[0]?.id ?? '')).toEqual(read[0]);
    expect(await log.findEvent('sevt_none')).toBeNull();
    expect(committed.filter((stored) => stored.streamId === streamId)).toEqual(read);
  });

  it('refuses another version than the decision saw, and says which half failed (L1)', async () => {
    const streamId = unique('version');
    await one(streamId, [event()], { expectedVersion: 0 });
    await expect(one(streamId, [event()], { expectedVersion: 0 })).rejects.toMatchObject({
      code: 'log.version-conflict',
      details: { actualVersion: 1 },
    });
    await expect(one(streamId, [event()], { generation: 7 })).rejects.toMatchObject({ code: 'log.generation-fenced' });
    expect((await log.streamHead(streamId))?.version).toBe(1);
    const never = unique('never');
    await expect(one(never, [event()], { expectedVersion: 3 })).rejects.toMatchObject({ code: 'log.version-conflict' });
    expect(await log.streamHead(never)).toBeNull();
  });

  it('leases a stream, fences the old holder, and frees it with the commit', async () => {
    const streamId = unique('lease');
    await one(streamId, [event()], { expectedVersion: 0, generation: 1, lease: { owner: 'a', ttlMs: 60_000 } });
    await one(streamId, [event()], { generation: 1 });
    await expect(
      one(streamId, [event()], { generation: 2, lease: { owner: 'b', ttlMs: 60_000 } }),
    ).rejects.toMatchObject({
      code: 'log.lease-held',
    });
    expect(await log.renewLeases('a', [{ streamId, generation: 1 }], 1)).toEqual(new Map([[streamId, 2]]));
    expect(await log.renewLeases('b', [{ streamId, generation: 1 }], 1)).toEqual(new Map());
    await new Promise((resolve) => setTimeout(resolve, 20));
    await one(streamId, [event()], { generation: 2, lease: { owner: 'b', ttlMs: 60_000 } });
    await expect(one(streamId, [event()], { generation: 1 })).rejects.toMatchObject({ code: 'log.generation-fenced' });
    await one(streamId, [event()], { generation: 2, releaseLease: true });
    expect(await log.streamHead(streamId)).toMatchObject({ generation: 2, leaseOwner: null, version: 4 });
    await one(streamId, [event()], { generation: 3, lease: { owner: 'c', ttlMs: 60_000 } });
    await log.releaseLease('c', streamId, 3);
    expect(await log.streamHead(streamId)).toMatchObject({ generation: 3, leaseOwner: null });
  });

  it('appends to several streams, all or nothing', async () => {
    const [a, b] = [unique('multi'), unique('multi')];
    await one(b, [event()]);
    const both = (expected: number) =>
      log.append({
        appends: [
          { streamId: a, workspaceId: WORKSPACE, expectedVersion: 0, events: [event(), event()] },
          { streamId: b, workspaceId: WORKSPACE, expectedVersion: expected, events: [event()] },
        ],
      });
    await expect(both(9)).rejects.toMatchObject({ code: 'log.version-conflict' });
    expect(await log.streamHead(a)).toBeNull();
    expect(await both(1)).toMatchObject({
      streams: [
        { streamId: a, toVersion: 2 },
        { streamId: b, toVersion: 2 },
      ],
    });
  });

  it('does not let one refused append fail the others of its commit (L4)', async () => {
    const good = Array.from({ length: 20 }, () => unique('good'));
    const bad = unique('bad');
    const settled = await Promise.allSettled([
      one(bad, [event()], { expectedVersion: 5 }),
      ...good.map((streamId) => one(streamId, [event()], { expectedVersion: 0 })),
      log.append({
        appends: [{ streamId: bad, workspaceId: WORKSPACE, events: [event()] }],
        statements: [{ text: 'select 1 / $1::integer', values: [0] }],
      }),
    ]);
    expect(settled.map(({ status }) => status)).toEqual(['rejected', ...good.map(() => 'fulfilled'), 'rejected']);
    expect(await log.streamHead(bad)).toBeNull();
  });

  it('names the constraint that a companion statement broke, and stores nothing', async () => {
    const streamId = unique('statement');
    const insert = (key: string) => ({
      text: `insert into idempotency (workspace_id, key, path, fingerprint, attempt, command_id) values ($1, $2, '', '', 0, '')`,
      values: [WORKSPACE, key],
    });
    const append = (key: string) =>
      log.append({ appends: [{ streamId, workspaceId: WORKSPACE, events: [event()] }], statements: [insert(key)] });
    const key = unique('key');
    const results = await Promise.allSettled([append(key), append(key)]);
    expect(results.map(({ status }) => status).sort()).toEqual(['fulfilled', 'rejected']);
    expect(results.find(({ status }) => status === 'rejected')).toMatchObject({
      reason: { code: 'log.statement-conflict', details: { constraint: 'idempotency_key' } },
    });
    await expect(
      log.append({
        appends: [{ streamId, workspaceId: WORKSPACE, events: [event()] }],
        statements: [{ text: 'delete from idempotency where key = $1', values: ['absent'], rows: 1 }],
      }),
    ).rejects.toMatchObject({ code: 'log.statement-conflict' });
    expect((await log.streamHead(streamId))?.version).toBe(1);
  });

  it('returns what is stored when the same event ids come again (L2)', async () => {
    const streamId = unique('again');
    const same = [event('a'), event('b')];
    const first = await one(streamId, same);
    expect((await one(streamId, same))?.events).toEqual(first?.events);
    expect((await log.streamHead(streamId))?.version).toBe(2);
    await expect(one(unique('other'), same)).rejects.toMatchObject({ code: 'log.event-id-taken' });
  });

  it.each([
    ['its COMMIT', [{ text: 'select 1', values: [] }], (query: unknown) => query === 'commit'],
    ['the append that is its own commit', [], (query: unknown) => (query as { name?: string }).name === 'log-append'],
  ])('finds out what became of a batch whose connection broke at %s (L2)', async (_at, statements, commits) => {
    let broken = 0;
    const flaky = {
      connect: async () => {
        const client = await pool.connect();
        return {
          query: async (text: string, values?: unknown[]) => {
            const answer = await client.query(text, values);
            if (!commits(text) || ++broken > 2) return answer;
            throw new Error('Connection terminated unexpectedly');
          },
          release: (destroy?: boolean) => client.release(destroy),
        };
      },
      query: (...args: Parameters<pg.Pool['query']>) => pool.query(...args),
    } as unknown as pg.Pool;
    const told = new Set<string>();
    const own = new EventLog({
      pool: flaky,
      onCommitted: (events) => {
        for (const { id } of events) told.add(id);
      },
    });
    const streams = Array.from({ length: 6 }, () => unique('unsure'));
    const sent = streams.map((streamId) => ({
      streamId,
      workspaceId: WORKSPACE,
      expectedVersion: 0,
      events: [event()],
    }));
    // The first goes alone, the others gather behind it: both commits happen, neither is answered.
    const results = await Promise.all(sent.map((append) => own.append({ appends: [append], statements })));
    expect(broken).toBe(2);
    expect(results.map(({ streams: [stream] }) => stream?.toVersion)).toEqual(sent.map(() => 1));
    expect(told).toEqual(new Set(sent.map(({ events }) => events[0]?.id)));
    for (const streamId of streams) expect((await log.streamHead(streamId))?.version).toBe(1);
  });

  it('does not begin an append after its deadline, also when the one before it took too long', async () => {
    const own = new EventLog({ pool });
    const streamId = unique('late');
    const slow = own.append({
      appends: [{ streamId: unique('slow'), workspaceId: WORKSPACE, events: [event()] }],
      statements: [{ text: 'select pg_sleep(0.2)', values: [] }],
    });
    const appends = [{ streamId, workspaceId: WORKSPACE, events: [event()] }];
    const failing = own.append({
      appends: [{ streamId: unique('failing'), workspaceId: WORKSPACE, events: [event()] }],
      statements: [
        { text: 'select pg_sleep(0.3)', values: [] },
        { text: 'select 1 / $1::integer', values: [0] },
      ],
    });
    // In one batch with the failing one, so that each is tried alone, one after the other.
    const late = own.append({ appends, deadlineAtMs: Date.now() + 400 });
    await slow;
    await expect(failing).rejects.toMatchObject({ code: '22012' });
    await expect(late).rejects.toMatchObject({ code: 'log.deadline' });
    expect(await log.streamHead(streamId)).toBeNull();
  });

  it('waits for a process that stopped in the middle of an append for seconds, not for ever', async () => {
    const streamId = unique('frozen');
    await one(streamId, [event()]);
    const frozen = await pool.connect();
    await frozen.query('begin');
    await frozen.query('select 1 from streams where stream_id = $1 for update', [streamId]);
    const at = Date.now();
    const result = await log.append({
      appends: [{ streamId, workspaceId: WORKSPACE, events: [event()] }],
      deadlineAtMs: at + 20_000,
    });
    expect(result.streams[0]?.toVersion).toBe(2);
    expect(Date.now() - at).toBeLessThan(5_000);
    await expect(frozen.query('commit')).rejects.toThrow();
    frozen.release(true);
  });

  it('keeps workspaces apart', async () => {
    const streamId = unique('tenant');
    await one(streamId, [event()]);
    await expect(
      log.append({ appends: [{ streamId, workspaceId: 'wrkspc_two', events: [event()] }] }),
    ).rejects.toMatchObject({ code: 'log.workspace' });
  });

  it('reads back whatever JSON was appended; NUL and lone surrogates become U+FFFD (L3)', async () => {
    const streamId = unique('json');
    await one(streamId, [
      event('t', { bad: 'a\u0000b\ud800c', good: '\\u0000 😀', nested: [{ 'k\udc00': '\u0000' }] }),
    ]);
    expect((await log.readStream(streamId, { afterVersion: 0 }))[0]?.data).toEqual({
      bad: 'a\ufffdb\ufffdc',
      good: '\\u0000 😀',
      nested: [{ 'k\ufffd': '\ufffd' }],
    });
    let version = 1;
    await fc.assert(
      fc.asyncProperty(fc.dictionary(fc.string(), fc.jsonValue({ noUnicodeString: false } as never)), async (data) => {
        const stored = await one(streamId, [event('t', data as NewEvent['data'])]);
        const [read] = await log.readStream(streamId, { afterVersion: version++ });
        expect(JSON.stringify(sorted(read?.data))).toBe(JSON.stringify(sorted(stored?.events[0]?.data)));
      }),
      { numRuns: 60 },
    );
  });

  it('never skips a late commit (gap-safe reader)', async () => {
    const seen: StoredEvent[] = [];
    let cursor = (await log.readAll({ after: LOG_START, limit: 10_000 })).cursor;
    const logs = Array.from({ length: 4 }, () => new EventLog({ pool }));
    let writing = true;
    const reader = (async () => {
      for (let last = false; ; ) {
        const page = await log.readAll({ after: cursor, limit: 500 });
        seen.push(...page.events);
        cursor = page.cursor;
        if (last && page.events.length === 0) return;
        if (!writing) last = true;
      }
    })();
    const names = Array.from({ length: 16 }, (_, i) => unique(`writer${i}`));
    await Promise.all(
      names.map(async (streamId, i) => {
        for (let n = 0; n < 40; n++) {
          const append = { streamId, workspaceId: WORKSPACE, events: [event(), event()] };
          await logs[i % logs.length]?.append({
            appends: [append],
            statements: n % 5 === 0 ? [{ text: 'select pg_sleep(0.005)', values: [] }] : [],
          });
        }
      }),
    );
    writing = false;
    await reader;
    const mine = seen.filter(({ streamId }) => names.includes(streamId));
    expect(mine).toHaveLength(16 * 80);
    for (const streamId of names) {
      expect(mine.filter((stored) => stored.streamId === streamId).map(({ version }) => version)).toEqual(
        Array.from({ length: 80 }, (_, i) => i + 1),
      );
    }
  });

  it('reads in order where transaction ids gain a digit', async () => {
    const { rows } = await pool.query<{ id: string }>('select pg_current_xact_id()::text as id');
    const now = Number(rows[0]?.id);
    const burn = 10 ** String(now).length - now - 4;
    await pool.query(`do $$ begin for i in 1..${burn} loop perform pg_current_xact_id(); commit; end loop; end $$`);
    let { cursor } = await log.readAll({ after: { txid: String(now), position: '0' }, limit: 1 });
    const streamId = unique('digits');
    for (let n = 0; n < 10; n++) await one(streamId, [event()]);
    const seen: StoredEvent[] = [];
    for (;;) {
      const page = await log.readAll({ after: cursor, limit: 3 });
      if (page.events.length === 0) break;
      seen.push(...page.events);
      cursor = page.cursor;
    }
    expect(seen.map(({ version }) => version)).toEqual(Array.from({ length: 10 }, (_, i) => i + 1));
  });

  it('does not deadlock when appends name their streams in any order (L4)', async () => {
    const streams = Array.from({ length: 6 }, () => unique('deadlock'));
    const logs = Array.from({ length: 4 }, () => new EventLog({ pool }));
    await Promise.all(
      logs.map(async (writer, w) => {
        for (let n = 0; n < 25; n++) {
          const order = [...streams].sort(() => ((w + n) % 2 === 0 ? 1 : -1));
          await writer.append({
            appends: order.map((streamId) => ({ streamId, workspaceId: WORKSPACE, events: [event()] })),
          });
        }
      }),
    );
    for (const streamId of streams) expect((await log.streamHead(streamId))?.version).toBe(100);
  });

  it('checks itself', async () => {
    expect(await checkLog(pool)).toEqual([]);
    await assertLogUsable(pool);
  });
});

describe('EventLog when Postgres is killed', () => {
  it('neither loses an acknowledged event nor stores one twice', async () => {
    const dir = join(testRunDir(), `crash-${counter++}`);
    let server = await startPostgres(dir);
    const url = `postgres://postgres@127.0.0.1:${server.port}/postgres`;
    const pool = createLogPool({ connectionString: url, applicationName: 'crash', onIdleError: () => undefined });
    try {
      await migrate(pool);
      const log = new EventLog({ pool });
      const acknowledged: string[] = [];
      let running = true;
      const writers = Array.from({ length: 8 }, async (_, i) => {
        for (let n = 0; running; n++) {
          const id = derivedEventId(`cmd_crash_${i}_${n}`, 0);
          await log.append({
            appends: [
              {
                streamId: `session-crash-${i}`,
                workspaceId: WORKSPACE,
                events: [{ id, type: 't', data: { n } }],
              },
            ],
            deadlineAtMs: Date.now() + 30_000,
          });
          acknowledged.push(id);
        }
      });
      for (let kill = 0; kill < 3; kill++) {
        await new Promise((resolve) => setTimeout(resolve, 400));
        const died = new Promise((resolve) => server.process.once('exit', resolve));
        process.kill(server.pid, 'SIGKILL');
        await died;
        server = await startPostgres(dir, { port: server.port });
      }
      await new Promise((resolve) => setTimeout(resolve, 300));
      running = false;
      await Promise.all(writers);
      expect(acknowledged.length).toBeGreaterThan(50);
      const { rows } = await pool.query<{ id: string }>('select id from events');
      expect(new Set(rows.map((row) => row.id))).toEqual(new Set(acknowledged));
      expect(await checkLog(pool)).toEqual([]);
      await log.close();
    } finally {
      await pool.end();
      process.kill(server.pid, 'SIGKILL');
    }
  }, 120_000);
});

function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted);
  if (value === null || typeof value !== 'object') return value;
  return Object.fromEntries(
    Object.entries(value)
      .sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0))
      .map(([k, v]) => [k, sorted(v)]),
  );
}
