import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { type HubMessage, newId, type RunnerMessage, streamOf } from '@holdfast/contracts';
import { createLogPool, DirectoryBlobStore, EventLog } from '@holdfast/event-store';
import { type TestDatabase, testDatabase, testRunDir } from '@holdfast/testing';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import type pg from 'pg';
import type { Packs } from '../hub/pack-channel.ts';
import type { RunnerLink } from '../hub/runner-link.ts';
import { type SandboxRow, SandboxStore } from '../store/sandbox.store.ts';
import { TEST_KEY, testKeeper } from '../test/keeper.ts';
import { migrateSandboxes } from '../test/migrations.ts';
import { CheckpointStore } from './checkpoint.store.ts';
import type { CheckpointKeeper } from './checkpoint-keeper.ts';
import { Seal } from './seal.ts';

type Ask = Extract<HubMessage, { type: 'checkpoint' }>;
type Taken = NonNullable<Extract<RunnerMessage, { type: 'checkpointed' }>['taken']>;
let database: TestDatabase;
let pool: pg.Pool;
let log: EventLog;
let sandboxes: SandboxStore;
let store: CheckpointStore;
let blobs: DirectoryBlobStore;
let keeper: CheckpointKeeper;
beforeAll(async () => {
  database = await testDatabase();
  pool = createLogPool({ connectionString: database.url, applicationName: 'spec' });
  await migrateSandboxes(pool);
  log = new EventLog({ pool });
  sandboxes = new SandboxStore(pool, log, 'sandbox', 'sandbox:1');
  store = new CheckpointStore(pool, sandboxes);
  blobs = new DirectoryBlobStore(join(testRunDir(), database.name));
  keeper = testKeeper(pool, sandboxes, blobs);
}, 90_000);
afterAll(async () => {
  await log.close();
  await pool.end();
});
let workspaceId: string;
beforeEach(() => {
  workspaceId = newId('workspace');
});

const sandbox = async (
  inContext: Partial<Pick<SandboxRow, 'environment_id' | 'context_key'>> = {},
): Promise<SandboxRow> => {
  const { row } = await sandboxes.request(
    {
      ...{ workspaceId, sessionId: newId('session'), generation: 1 },
      environmentId: inContext.environment_id ?? newId('environment'),
      contextKey: inContext.context_key ?? null,
      environment: { type: 'cloud' } as unknown as SandboxRow['environment'],
    },
    'local',
  );
  return row;
};
const digestOf = (text: string): string => createHash('sha256').update(text).digest('hex');
const place = (text: string) => ({ pack: digestOf(text), at: 0, bytes: text.length, digest: digestOf(text) });
const figures = {
  ...{ entries: 1, bytes: 2, changed_files: 1, new_bytes: 3, took_ms: 4 },
  ...{ stopped_ms: 5, skipped: 0, unreadable: 0, torn: 0 },
};
/** A runner that hands these over and then names those. */
class Runner {
  readonly journalId = 'j1';
  keepsFiles = true;
  readonly settled: (string | null)[] = [];
  asked: Omit<Ask, 'type' | 'id'> | null = null;
  give: string[] = [];
  name: string[] = [];
  roots: Taken['roots'] = null;

  hold(text: string): this {
    [this.give, this.name] = [[text], [text]];
    this.roots = { workspace: place(text), home: place(text) };
    return this;
  }
  async checkpoint(ask: Omit<Ask, 'type' | 'id'>, packs: Packs) {
    this.asked = ask;
    await Promise.all(this.give.map((text) => packs.take(digestOf(text), Buffer.from(text))));
    const named = this.name.map((text) => ({ digest: digestOf(text), bytes: text.length }));
    return { taken: { roots: this.roots, packs: named, figures, unreadable: [] }, fault: null };
  }
  async restore(checkpoint: Ask['base'], give: Packs['give']) {
    const got = await Promise.all((checkpoint?.packs ?? []).map(({ digest }) => give(digest)));
    this.give = got.map((bytes) => bytes.toString());
    return { fresh: true, restored: checkpoint !== null, fault: null };
  }
  settle(id: string | null): void {
    this.settled.push(id);
  }
  get link(): RunnerLink {
    return this as unknown as RunnerLink;
  }
}

describe('a checkpoint', () => {
  it('is durable and recorded when it is told, covers the log as it was before, and is given back', async () => {
    const row = await sandbox();
    await pool.query('insert into streams (stream_id, version, workspace_id) values ($1, 7, $2)', [
      streamOf('session', row.session_id),
      workspaceId,
    ]);
    const runner = new Runner().hold('first');
    const taken = await keeper.take(row, runner.link);
    expect(taken).toMatchObject({ throughVersion: 7, changed: true });
    expect(runner.settled).toEqual([taken.checkpointId]);
    const { rows } = await pool.query<{ data: object }>(
      `select data from events where type = 'sandbox.checkpointed' and stream_id = $1`,
      [streamOf('sandbox', row.id)],
    );
    expect(rows[0]?.data).toMatchObject({ checkpoint_id: taken.checkpointId, session_version: 7, new_bytes: 3 });
    const other = new Runner();
    expect(await keeper.restore(row, other.link)).toEqual({
      journalId: 'j1',
      checkpoint: { checkpointId: taken.checkpointId, throughVersion: 7 },
    });
    expect(other.give).toEqual(['first']);
  });

  it('that finds nothing new is the one before, which holds for longer', async () => {
    const row = await sandbox();
    const runner = new Runner().hold('same');
    const first = await keeper.take(row, runner.link);
    await pool.query('insert into streams (stream_id, version, workspace_id) values ($1, 9, $2)', [
      streamOf('session', row.session_id),
      workspaceId,
    ]);
    runner.roots = null;
    const second = await keeper.take(row, runner.link);
    expect(second).toEqual({ checkpointId: first.checkpointId, throughVersion: 9, changed: false });
    expect((await store.newest(row))?.throughVersion).toBe(9);
  });

  it('names packs of its own session and no others, whoever has them (C3)', async () => {
    const secret = 'what another session keeps';
    const [mine, neighbour] = [await sandbox(), await sandbox()];
    await keeper.take(neighbour, new Runner().hold(secret).link);
    const thief = new Runner();
    thief.name = [secret];
    thief.roots = { workspace: place(secret), home: place(secret) };
    await expect(keeper.take(mine, thief.link)).rejects.toMatchObject({ code: 'checkpoint.refused' });
    expect(thief.settled).toEqual([null]);
    expect(await store.newest(mine)).toBeNull();
    // Nor is it given one: not while a checkpoint is taken, and not while files are put back.
    await keeper.take(mine, new Runner().hold('own').link);
    let given: unknown;
    const link = {
      ...{ journalId: 'j', keepsFiles: true, settle: () => undefined },
      restore: async (_base: unknown, give: Packs['give']) => {
        given = await give(digestOf(secret)).catch((error: unknown) => error);
        return { fresh: false, restored: false, fault: null };
      },
    } as unknown as RunnerLink;
    await keeper.restore(mine, link);
    expect(given).toMatchObject({ code: 'checkpoint.no-pack' });
  });

  it('is sealed for its workspace: neither another workspace nor another key opens it, nor a changed byte', async () => {
    const seal = new Seal(TEST_KEY);
    const bytes = Buffer.from('secret '.repeat(100));
    const digest = digestOf(bytes.toString());
    const sealed = await seal.seal('wrkspc_a', digest, bytes);
    expect(sealed.includes('secret')).toBe(false);
    expect(await seal.open('wrkspc_a', digest, sealed)).toEqual(bytes);
    const unreadable = { code: 'checkpoint.unreadable' };
    await expect(seal.open('wrkspc_b', digest, sealed)).rejects.toMatchObject(unreadable);
    await expect(seal.open('wrkspc_a', digestOf('x'), sealed)).rejects.toMatchObject(unreadable);
    await expect(new Seal(`${TEST_KEY}!`).open('wrkspc_a', digest, sealed)).rejects.toMatchObject(unreadable);
    for (const at of [0, 5, 40, sealed.length - 1]) {
      const changed = Buffer.from(sealed);
      changed[at] = (changed[at] ?? 0) ^ 1;
      await expect(seal.open('wrkspc_a', digest, changed)).rejects.toMatchObject(unreadable);
    }
    await expect(seal.open('wrkspc_a', digest, Buffer.alloc(3))).rejects.toMatchObject(unreadable);
  });

  it('that cannot be kept is not recorded, and the runner hears that', async () => {
    const row = await sandbox();
    const broken = testKeeper(pool, sandboxes, {
      put: () => Promise.reject(new Error('the disk is full')),
    } as unknown as DirectoryBlobStore);
    const runner = new Runner().hold('lost');
    await expect(
      broken.take(row, {
        ...{ keepsFiles: true, settle: (id: string | null) => runner.settle(id) },
        checkpoint: async (ask: Ask, packs: Packs) => {
          await packs.take(digestOf('lost'), Buffer.from('lost')).catch(() => undefined);
          return { ...(await runner.checkpoint(ask, { ...packs, take: () => Promise.resolve() })) };
        },
      } as unknown as RunnerLink),
    ).rejects.toThrow('the disk is full');
    expect([runner.settled, await store.newest(row)]).toEqual([[null], null]);
  });

  it('is not asked of a runner from before there were any, which says so', async () => {
    const row = await sandbox();
    const runner = new Runner().hold('mute');
    await keeper.take(row, runner.link);
    runner.keepsFiles = false;
    runner.asked = null;
    expect(await keeper.restore(row, runner.link)).toBeNull();
    await expect(keeper.take(row, runner.link)).rejects.toMatchObject({ code: 'checkpoint.old-runner' });
    expect([runner.asked, runner.give]).toEqual([null, ['mute']]);
  });

  it('of a context has the newest workspace of any of its sessions, and the home of its own', async () => {
    const context = { environment_id: newId('environment'), context_key: 'k' };
    const [one, two] = [await sandbox(context), await sandbox(context)];
    const first = await keeper.take(one, new Runner().hold('one').link);
    expect(await store.newest(two)).toMatchObject({ roots: { workspace: place('one') }, throughVersion: 0 });
    expect((await store.newest(two))?.roots.home).toBeUndefined();
    const runner = new Runner().hold('two');
    const second = await keeper.take(two, runner.link);
    expect(runner.asked?.base?.id).toBe(first.checkpointId);
    expect(await store.newest(one)).toMatchObject({
      id: `${first.checkpointId}+${second.checkpointId}`,
      roots: { workspace: place('two'), home: place('one') },
    });
  });
});

describe('what nobody refers to', () => {
  it('goes after a day, and what a session keeps stays (C3)', async () => {
    const [kept, gone] = [await sandbox(), await sandbox()];
    await keeper.take(kept, new Runner().hold('kept').link);
    await keeper.take(gone, new Runner().hold('gone').link);
    const [pack] = (
      await pool.query<{ blob: string }>('select blob from checkpoint_packs where digest = $1', [digestOf('gone')])
    ).rows;
    await store.forget(gone.session_id);
    expect(await keeper.collect()).toBe(0);
    await pool.query(`update checkpoint_packs set put_at = put_at - interval '25 hours'`);
    expect(await keeper.collect()).toBe(1);
    await expect(blobs.size(workspaceId, pack?.blob ?? '')).rejects.toMatchObject({ code: 'blob.not-found' });
    const other = new Runner();
    await keeper.restore(kept, other.link);
    expect(other.give).toEqual(['kept']);
    // A put of the same bytes begins anew.
    await keeper.take(gone, new Runner().hold('gone').link);
    await keeper.restore(gone, other.link);
    expect(other.give).toEqual(['gone']);
  });
});
