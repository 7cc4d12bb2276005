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
async function owned(store: SandboxStore) {
  const { row } = await store.request(
    {
      ...{ workspaceId: 'w1', sessionId: newId('session'), environmentId: 'e1', contextKey: null, generation: 1 },
      environment: { x_sandbox: DEFAULT_SANDBOX },
    } as unknown as EnsureSandboxBody,
    'kubernetes',
  );
  return row;
}
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
