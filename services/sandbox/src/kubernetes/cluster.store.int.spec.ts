import { setTimeout as sleep } from 'node:timers/promises';
import { createLogPool } from '@holdfast/event-store';
import { type TestDatabase, testDatabase } from '@holdfast/testing';
import { afterAll, beforeAll, expect, it } from '@jest/globals';
import type pg from 'pg';
import { migrateSandboxes } from '../test/migrations.ts';
import { ClusterStore } from './cluster.store.ts';

let database: TestDatabase;
let pool: pg.Pool;
beforeAll(async () => {
  database = await testDatabase();
  pool = createLogPool({ connectionString: database.url, applicationName: 'spec' });
  await migrateSandboxes(pool);
}, 90_000);
afterAll(async () => {
  await pool.end();
  await database.drop();
});

it('work is done alone for as long as it takes, and by the next one after that', async () => {
  const [one, other] = [new ClusterStore(pool), new ClusterStore(pool)];
  const nothing = () => Promise.resolve();
  const long = one.alone(async () => {
    await sleep(4_500);
  });
  await sleep(4_000);
  expect(await other.alone(nothing)).toBe(false);
  expect(await long).toBe(true);
  expect(await other.alone(nothing)).toBe(true);
}, 30_000);

it('a pod has one key; another takes its place after a restart of the container and never before', async () => {
  const store = new ClusterStore(pool);
  const pod = { uid: 'pod-1', name: 'p', namespace: 'ns', node: null };
  expect(await store.bindKey(pod, 'w1', 'first', 0)).toBe(true);
  expect(await store.bindKey(pod, 'w1', 'second', 0)).toBe(false);
  expect(await store.bindKey(pod, 'w1', 'second', 1)).toBe(true);
  // The same key again, seen by a replica that is behind, opens nothing for a third.
  expect(await store.bindKey(pod, 'w1', 'second', 0)).toBe(true);
  expect(await store.bindKey(pod, 'w1', 'third', 1)).toBe(false);
  expect(await store.keyOf('pod-1')).toMatchObject({ publicKey: 'second', restarts: 1 });
});
