import type { Idempotency } from '@holdfast/contracts';
import { type TestDatabase, testDatabase } from '@holdfast/testing';
import { afterAll, beforeAll, expect, it } from '@jest/globals';
import type pg from 'pg';
import { createLogPool, findRepeated, forgetOldIdempotency, idempotencyStatement, migrate } from './index.ts';

const WORKSPACE = 'wrkspc_one';
let database: TestDatabase;
let pool: pg.Pool;
beforeAll(async () => {
  database = await testDatabase();
  pool = createLogPool({ connectionString: database.url, applicationName: 'spec' });
  await migrate(pool);
}, 90_000);
afterAll(async () => {
  await pool.end();
  await database.drop();
});

let counter = 0;
const request = (rest: Partial<Idempotency> = {}): Idempotency => ({
  key: null,
  attempt: 0,
  path: 'POST /v1/x',
  fingerprint: `request-${counter++}`,
  ...rest,
});
async function store(idempotency: Idempotency, commandId: string, ageMs = 0): Promise<void> {
  const { text, values } = idempotencyStatement(WORKSPACE, idempotency, commandId);
  await pool.query(text, [...values]);
  await pool.query(
    `update idempotency set created_at = clock_timestamp() - $1::bigint * interval '1 millisecond' where command_id = $2`,
    [ageMs, commandId],
  );
}
const find = (idempotency: Idempotency, workspace = WORKSPACE) => findRepeated(pool, workspace, idempotency);

it('finds a request by its key, for ever, and only in its workspace', async () => {
  const first = request({ key: 'key-1' });
  await store(first, 'cmd_1', 3_600_000);
  await expect(find(first)).resolves.toBe('cmd_1');
  await expect(find({ ...first, attempt: 2 })).resolves.toBe('cmd_1');
  await expect(find(first, 'wrkspc_two')).resolves.toBeNull();
  await expect(find({ ...first, fingerprint: 'another' })).rejects.toMatchObject({ code: 'idempotency.key-reused' });
});

it('without a key gives a retry an attempt before it, once, and a first attempt nothing (T5)', async () => {
  const first = request();
  await store(first, 'cmd_2');
  await expect(find(first)).resolves.toBeNull();
  await expect(find({ ...first, attempt: 1 })).resolves.toBe('cmd_2');
  await expect(find({ ...first, attempt: 1 })).resolves.toBeNull();
  await expect(find({ ...first, attempt: 2 })).resolves.toBe('cmd_2');
});

it('does not take an equal request of 20 s ago for the attempt before a retry, but waits for each answer anew', async () => {
  const first = request();
  await store(first, 'cmd_3', 20_000);
  await expect(find({ ...first, attempt: 1 })).resolves.toBeNull();
  const slow = request();
  await store(slow, 'cmd_slow', 11_000);
  await expect(find({ ...slow, attempt: 1 })).resolves.toBe('cmd_slow');
  await pool.query(`update idempotency set created_at = created_at - interval '11 s' where command_id = 'cmd_slow'`);
  await expect(find({ ...slow, attempt: 2 })).resolves.toBe('cmd_slow');
});

it('gives a retry the first attempt although the one between was never heard', async () => {
  const first = request();
  await store(first, 'cmd_5');
  await expect(find({ ...first, attempt: 2 })).resolves.toBe('cmd_5');
  await expect(find({ ...first, attempt: 1 })).resolves.toBeNull();
});

it('gives a retry that is asked for again what it has claimed before', async () => {
  const first = request();
  await store(first, 'cmd_6');
  const retry = { ...first, attempt: 1 };
  await expect(find(retry)).resolves.toBe('cmd_6');
  await expect(findRepeated(pool, WORKSPACE, retry, true)).resolves.toBe('cmd_6');
});

it('gives one of two retries at once the stored attempt', async () => {
  const first = request();
  await store(first, 'cmd_4');
  const both = await Promise.all([find({ ...first, attempt: 1 }), find({ ...first, attempt: 1 })]);
  expect(both.filter((found) => found !== null)).toEqual(['cmd_4']);
});

it('forgets what no retry can match any more, and old keys', async () => {
  await pool.query('delete from idempotency');
  await store(request(), 'cmd_young');
  await store(request(), 'cmd_old', 600_000);
  await store(request({ key: 'young' }), 'cmd_young_key', 600_000);
  await store(request({ key: 'old' }), 'cmd_old_key', 7_200_000);
  await forgetOldIdempotency(pool, 3_600_000);
  const { rows } = await pool.query<{ command_id: string }>('select command_id from idempotency order by 1');
  expect(rows.map((row) => row.command_id)).toEqual(['cmd_young', 'cmd_young_key']);
});
