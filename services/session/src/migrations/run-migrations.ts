import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { logMigrations, type Migration } from '@holdfast/event-store';
import { catalogueSource } from '../catalogue/catalogue.source.ts';
import { catalogueMigrations } from './catalogue.migrations.ts';

/** Advisory lock: of several migration jobs at once one works, the others wait. */
const LOCK = 4_711_170_001;
const WRITE = 'select, insert, update, delete on';
const CALL = ['usage on all sequences in schema public', 'execute on all functions in schema public'];
/** What each role may do. The sandbox service reads and writes its own tables; the observer sees times and counts, no contents. */
const GRANTS: Readonly<Record<string, readonly string[]>> = {
  holdfast_session: [`${WRITE} all tables in schema public`, ...CALL],
  holdfast_gateway: ['select on all tables in schema public'],
  holdfast_sandbox: [
    `${WRITE} sandboxes, runner_keys, sandbox_environments, sandbox_pools, ended_sessions, checkpoints, checkpoint_packs, events, streams, consumer_handled`,
    'select on sandbox_installation',
    ...CALL,
  ],
  holdfast_observer: [
    'select (position, txid, workspace_id, stream_id, version, type, recorded_at) on events',
    'select (id, workspace_id, status, created_at, updated_at, archived_at) on sessions',
    'select (id, workspace_id, status, isolation, created_at, updated_at) on sandboxes',
    'select on relay_checkpoint',
  ],
};

async function sandboxMigrations(folder: string): Promise<Migration[]> {
  const files = (await readdir(folder)).filter((file) => /^\w+\d{13}\.sql$/.test(file)).sort();
  return Promise.all(
    files.map(async (file) => ({
      name: file.slice(0, -'.sql'.length),
      sql: await readFile(join(folder, file), 'utf8'),
    })),
  );
}

/**
 * Brings the schema up to date: the log's, the catalogue's and the sandbox service's steps, then the grants of the
 * services' roles where those exist. Safe to repeat and to run from several places at once.
 */
export async function runMigrations(databaseUrl: string, sandboxFolder: string): Promise<string[]> {
  const source = catalogueSource(databaseUrl, 'migrate', [
    ...logMigrations,
    ...catalogueMigrations,
    ...(await sandboxMigrations(sandboxFolder)),
  ]);
  await source.initialize();
  const lock = source.createQueryRunner();
  try {
    await lock.query('select pg_advisory_lock($1)', [LOCK]);
    const applied = await source.runMigrations();
    for (const [role, grants] of Object.entries(GRANTS)) {
      const [{ present }] = (await source.query(
        'select exists (select 1 from pg_roles where rolname = $1) as present',
        [role],
      )) as [{ present: boolean }];
      if (!present) continue;
      for (const grant of ['usage on schema public', ...grants]) await source.query(`grant ${grant} to ${role}`);
    }
    return applied.map((migration) => migration.name);
  } finally {
    await lock.query('select pg_advisory_unlock($1)', [LOCK]);
    await lock.release();
    await source.destroy();
  }
}
