import { DEFAULT_SANDBOX, type EnsureSandboxBody, newId } from '@holdfast/contracts';
import { createLogPool, EventLog } from '@holdfast/event-store';
import { type TestDatabase, testDatabase } from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import type pg from 'pg';
import { migrateSandboxes } from '../test/migrations.ts';
import { SandboxStore } from './sandbox.store.ts';

let database: TestDatabase;
let pool: pg.Pool;
let log: EventLog;
beforeAll(async () => {
  database = await testDatabase();
  pool = createLogPool({ connectionString: database.url, applicationName: 'spec' });
  await migrateSandboxes(pool);
  log = new EventLog({ pool });
}, 90_000);
afterAll(async () => {
  await log.close();
  await pool.end();
  await database.drop();
});

const replica = (name: string): SandboxStore => new SandboxStore(pool, log, name, `${name}:${newId('command')}`);
const request = (store: SandboxStore, sessionId: string) =>
  store.request(
    {
      ...{ workspaceId: 'w1', sessionId, environmentId: 'e1', contextKey: null, generation: 1 },
      environment: { x_sandbox: DEFAULT_SANDBOX },
    } as unknown as EnsureSandboxBody,
    'kubernetes',
  );
const owned = async (store: SandboxStore) => (await request(store, newId('session'))).row;
const facts = { journalId: 'j1', publicKey: null, isolation: 'container', incarnation: 1 };
const claim = { namespace: 'ns', claim: 'sbx-1', environment: {} as EnsureSandboxBody['environment'] };

describe('a sandbox that another replica serves by now', () => {
  it('is nobody else’s to place, to call ready or to let rest, and anybody’s to destroy', async () => {
    const [before, now] = [replica('before'), replica('now')];
    const row = await owned(before);
    await now.takeOver(row.id);
    const at = { pod: 'p', podUid: 'u', node: null, launch: 'cold' } as const;
    expect(await before.place(row.id, at)).toBeNull();
    const conflict = { code: 'log.statement-conflict' };
    await expect(before.ready(row, facts)).rejects.toMatchObject(conflict);
    await expect(before.mark(row, 'suspended', 'sandbox.suspended', { reason: 'idle' })).rejects.toMatchObject(
      conflict,
    );
    expect((await now.byIds([row.id])).get(row.id)).toMatchObject({ status: 'starting', pod: null });
    expect(await now.place(row.id, at)).toMatchObject({ pod: 'p' });
    await now.ready(row, facts);
    await before.mark(row, 'destroyed', 'sandbox.destroyed', { reason: 'its session is over' });
    expect((await now.byIds([row.id])).get(row.id)).toMatchObject({ status: 'destroyed' });
  });
});

describe('a session that is over', () => {
  const over = { code: 'sandbox.session-over', kind: 'rejected' };
  const left = async (sessionId: string) =>
    (
      await pool.query<{ id: string }>(`select id from sandboxes where session_id = $1 and status <> 'destroyed'`, [
        sessionId,
      ])
    ).rows;

  it('gets no sandbox, also when it asked before that was known', async () => {
    const store = replica('one');
    const late = newId('session');
    await store.endSession(late, 'w1');
    await expect(request(store, late)).rejects.toMatchObject(over);
    const meanwhile = newId('session');
    const record = store.record.bind(store);
    store.record = async (...args) => {
      store.record = record;
      await store.endSession(meanwhile, 'w1');
      await record(...args);
    };
    await expect(request(store, meanwhile)).rejects.toMatchObject(over);
    expect([await left(late), await left(meanwhile)]).toEqual([[], []]);
  });

  it('is shown the sandbox that it still has, and no new one after that', async () => {
    const store = replica('one');
    const row = await owned(store);
    await store.endSession(row.session_id, 'w1');
    expect((await request(store, row.session_id)).row.id).toBe(row.id);
    await store.mark(row, 'destroyed', 'sandbox.destroyed', { reason: 'its session is over' });
    await expect(request(store, row.session_id)).rejects.toMatchObject(over);
  });
});

describe('times of a row', () => {
  it('are told by the clock that wrote them', async () => {
    const store = replica('one');
    const row = await owned(store);
    expect(row.unused_ms).toBeLessThan(5_000);
    expect(row.lived_ms).toBeNull();
    await store.ready(row, facts);
    await pool.query(`update sandboxes set used_at = used_at - interval '90 s', ready_at = ready_at - interval '1 h'`);
    const aged = (await store.byIds([row.id])).get(row.id);
    expect(Math.round((aged?.unused_ms ?? 0) / 10_000)).toBe(9);
    expect(Math.round((aged?.lived_ms ?? 0) / 60_000)).toBe(60);
  });
});

describe('an incarnation', () => {
  it('begins once, however many begin it', async () => {
    const store = replica('one');
    const row = await owned(store);
    const begun = await Promise.all([store.beginClaim(row, claim), store.beginClaim(row, claim)]);
    const [first, ...rest] = begun.filter((one) => one !== null);
    expect([first?.incarnation, rest]).toEqual([1, []]);
    if (first === undefined) return;
    const again = await Promise.all([store.beginAgain(first), store.beginAgain(first)]);
    expect(again.filter((one) => one !== null)).toMatchObject([{ incarnation: 2 }]);
  });
});
