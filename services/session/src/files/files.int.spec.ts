import { mkdtempSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { type Command, type CreateFileBody, type FileResource, newId } from '@holdfast/contracts';
import { type BlobStore, createLogPool, EventLog, openBlobStore } from '@holdfast/event-store';
import { type TestDatabase, testDatabase } from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import type pg from 'pg';
import type { DataSource } from 'typeorm';
import { catalogueSource } from '../catalogue/catalogue.source.ts';
import { Catalogue } from '../catalogue/catalogue.ts';
import { Idempotent } from '../commands/idempotent.ts';
import { runMigrations } from '../migrations/run-migrations.ts';
import { FileCollector } from './file.collector.ts';
import { FileCommands } from './file.commands.ts';
import { OutputKeeper } from './output-keeper.ts';

const WORKSPACE = 'wrkspc_files';
const GRACE_MS = 300;
const QUOTA_BYTES = 1_000;

const folder = mkdtempSync(join(tmpdir(), 'holdfast-files-'));
let database: TestDatabase;
let source: DataSource;
let pool: pg.Pool;
let blobs: BlobStore;
let log: EventLog;
let files: FileCommands;
let collector: FileCollector;
beforeAll(async () => {
  database = await testDatabase();
  await runMigrations(database.url, fileURLToPath(new URL('../../../sandbox/migrations', import.meta.url)));
  source = await catalogueSource(database.url, 'spec').initialize();
  pool = createLogPool({ connectionString: database.url, applicationName: 'spec' });
  await pool.query('insert into workspaces (id, name) values ($1, $1), ($2, $2)', [WORKSPACE, 'wrkspc_other']);
  blobs = await openBlobStore({ folder });
  log = new EventLog({ pool });
  files = new FileCommands({
    log,
    pool,
    catalogue: new Catalogue(source),
    idempotent: new Idempotent(pool, log),
    blobs,
    quotaBytes: QUOTA_BYTES,
  });
  collector = new FileCollector(pool, blobs, GRACE_MS);
}, 60_000);
afterAll(async () => {
  await source.destroy();
  await pool.end();
  await database.drop();
  await rm(folder, { recursive: true });
});

const command = <B>(body: B, rest: Partial<Command> = {}): Command<B> => ({
  commandId: newId('command'),
  workspaceId: WORKSPACE,
  actor: { type: 'service', id: 'spec' },
  idempotency: null,
  traceparent: null,
  ...rest,
  body,
});

async function bodyOf(text: string, rest: Partial<CreateFileBody> = {}): Promise<CreateFileBody> {
  const { digest, sizeBytes } = await blobs.put(WORKSPACE, Buffer.from(text));
  return {
    filename: 'a.txt',
    mimeType: 'text/plain',
    digest,
    sizeBytes,
    expiresInSeconds: null,
    output: null,
    ...rest,
  };
}
const make = async (text: string, rest: Partial<CreateFileBody> = {}): Promise<FileResource & { digest: string }> => {
  const body = await bodyOf(text, rest);
  return { ...(await files.create(newId('file'), command(body))), digest: body.digest };
};
const isThere = (digest: string): Promise<boolean> =>
  blobs.size(WORKSPACE, digest).then(
    () => true,
    () => false,
  );

describe('a file', () => {
  it('is a row and an audit event with its digest, in one commit', async () => {
    const made = await make('audited', { expiresInSeconds: 3_600, output: { sessionId: 'sesn_one', path: 'a/a.txt' } });
    const { rows } = await pool.query(
      `select e.type, e.data, f.resource, f.digest, f.size_bytes, f.scope_id, f.workspace_id
       from events e join files f on e.stream_id = 'file-' || f.id where f.id = $1`,
      [made.id],
    );
    const { digest, ...resource } = made;
    expect(resource.scope).toEqual({ id: 'sesn_one', type: 'session' });
    expect(Date.parse(resource.expires_at ?? '') - Date.parse(resource.created_at)).toBe(3_600_000);
    expect(rows).toEqual([
      {
        type: 'file.created',
        data: { file: resource, digest },
        resource,
        digest,
        size_bytes: '7',
        scope_id: 'sesn_one',
        workspace_id: WORKSPACE,
      },
    ]);
  });

  it('is made once for one key, and once for a command that is asked again', async () => {
    const body = await bodyOf('once');
    const idempotency = { key: 'k', attempt: 0, path: 'POST /v1/files', fingerprint: 'f' };
    const [one, two] = [
      await files.create(newId('file'), command(body, { idempotency })),
      await files.create(newId('file'), command(body, { idempotency })),
    ];
    expect(two).toEqual(one);
    const asked = command(body);
    const first = await files.create(newId('file'), asked);
    await expect(files.create(newId('file'), { ...asked, again: true })).resolves.toEqual(first);
  });

  it('of another workspace does not exist', async () => {
    const { id } = await make('mine');
    await expect(files.delete(id, command({}, { workspaceId: 'wrkspc_other' }))).rejects.toMatchObject({
      code: 'file.not-found',
    });
  });

  it('above the quota of its workspace is refused by the code that the SDKs know', async () => {
    await expect(make('x'.repeat(QUOTA_BYTES + 1))).rejects.toMatchObject({
      kind: 'invalid',
      details: { errorCode: 'storage_quota_exceeded' },
    });
  });

  it('is deleted once, however many ask at once', async () => {
    const { id } = await make('contended');
    const asked = await Promise.allSettled(Array.from({ length: 5 }, () => files.delete(id, command({}))));
    expect(asked.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
    for (const one of asked)
      if (one.status === 'rejected') expect(one.reason).toMatchObject({ code: 'file.not-found' });
  });
});

describe('the bytes of files', () => {
  it('stay while any file has them, and for a while after the last one is gone', async () => {
    const [one, two] = [await make('shared'), await make('shared', { filename: 'b.txt' })];
    await files.delete(one.id, command({}));
    await sleep(GRACE_MS + 50);
    await collector.collect();
    expect(await isThere(one.digest)).toBe(true);
    await files.delete(two.id, command({}));
    await collector.collect();
    expect(await isThere(one.digest)).toBe(true);
    await sleep(GRACE_MS + 50);
    await expect(collector.collect()).resolves.toBeGreaterThan(0);
    expect(await isThere(one.digest)).toBe(false);
    await expect(collector.collect()).resolves.toBe(0);
  });

  it('stay while a session that may go on has them, whatever became of the file', async () => {
    const { id, digest } = await make('mounted');
    const resources = [{ id: 'sesrsc_one', type: 'file', file_id: id, digest, mount_path: '/x', size_bytes: 7 }];
    await pool.query(
      `insert into sessions (id, workspace_id, view, status, version, agent_id, agent_version, environment_id, created_at, updated_at)
       values ('sesn_holds', $1, $2, 'idle', 1, 'agent_1', 1, 'env_1', now(), now())`,
      [WORKSPACE, { resources }],
    );
    await files.delete(id, command({}));
    await sleep(GRACE_MS + 50);
    await collector.collect();
    expect(await isThere(digest)).toBe(true);
    await pool.query(`update sessions set archived_at = now() where id = 'sesn_holds'`);
    await collector.collect();
    expect(await isThere(digest)).toBe(false);
  });

  it('go when the file has expired', async () => {
    const { id, digest } = await make('expires', { expiresInSeconds: 3_600 });
    await sleep(GRACE_MS + 50);
    await collector.collect();
    expect(await isThere(digest)).toBe(true);
    await pool.query(`update files set expires_at = now() - interval '1 minute' where id = $1`, [id]);
    await collector.collect();
    expect(await isThere(digest)).toBe(false);
  });

  it('that were collected between their upload and their file make it fail, not lie', async () => {
    const body = await bodyOf('raced');
    await blobs.delete(WORKSPACE, body.digest);
    await expect(files.create(newId('file'), command(body))).rejects.toMatchObject({
      kind: 'unavailable',
      code: 'file.bytes-gone',
    });
  });

  it('of outputs that were collected meanwhile leave the rest to be kept', async () => {
    const [here, gone] = await Promise.all([
      blobs.put(WORKSPACE, Buffer.from('here')),
      blobs.put(WORKSPACE, Buffer.from('gone')),
    ]);
    await blobs.delete(WORKSPACE, gone.digest);
    const keeper = new OutputKeeper(log, files, 'spec');
    const found = {
      files: [
        { path: 'gone', ...gone },
        { path: 'here', ...here },
      ],
      leftOut: [],
    };
    const session = { id: 'sesn_outputs', workspaceId: WORKSPACE };
    const { kept, leftOut } = await keeper.keep(session, found);
    expect([kept.map(({ path }) => path), leftOut.map(({ path }) => path)]).toEqual([['here'], ['gone']]);
    // Two workers at once make one file of it.
    const same = { files: [{ path: 'again', ...here }], leftOut: [] };
    const both = await Promise.all([keeper.keep(session, same), keeper.keep(session, same)]);
    expect(new Set(both.flatMap((one) => one.kept.map(({ fileId }) => fileId))).size).toBe(1);
  });

  it('are never missing from a file that was made while collectors ran', async () => {
    const made: { id: string; digest: string }[] = [];
    let running = true;
    const eager = new FileCollector(pool, blobs, 0);
    const sweeps = Promise.all(
      Array.from({ length: 2 }, async () => {
        while (running) await eager.collect();
      }),
    );
    for (let n = 0; n < 150; n++) {
      // The same few bytes again and again, so that uploads meet collections of them.
      const one = await make(`bytes ${n % 3}`).catch((error: unknown) => {
        expect(error).toMatchObject({ code: 'file.bytes-gone' });
        return null;
      });
      if (one === null) continue;
      if (n % 5 === 0) made.push(one);
      else await files.delete(one.id, command({}));
    }
    running = false;
    await sweeps;
    expect(made.length).toBeGreaterThan(0);
    for (const { digest } of made) expect(await isThere(digest)).toBe(true);
  }, 30_000);
});
