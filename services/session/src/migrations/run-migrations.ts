import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { logMigrations, type Migration } from '@holdfast/event-store';
import { catalogueSource } from '../catalogue/catalogue.source.ts';
import { catalogueMigrations } from './catalogue.migrations.ts';

/** Advisory lock: of several migration jobs at once one works, the others wait. */
const LOCK = 4_711_170_001;
const ROLES = {
  holdfast_session: 'select, insert, update, delete',
  holdfast_gateway: 'select',
  holdfast_sandbox: 'select, insert, update, delete',
} as const;
/** What the sandbox service may write; it reads nothing else. */
const SANDBOX_TABLES = ['sandboxes', 'events', 'streams', 'consumer_handled'];

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
    for (const [role, rights] of Object.entries(ROLES)) {
      const [{ present }] = (await source.query(
        'select exists (select 1 from pg_roles where rolname = $1) as present',
        [role],
      )) as [{ present: boolean }];
      if (!present) continue;
      await source.query(`grant usage on schema public to ${role}`);
      const tables = role === 'holdfast_sandbox' ? `table ${SANDBOX_TABLES.join(', ')}` : 'all tables in schema public';
      await source.query(`grant ${rights} on ${tables} to ${role}`);
      if (role === 'holdfast_gateway') continue;
      await source.query(`grant usage on all sequences in schema public to ${role}`);
      await source.query(`grant execute on all functions in schema public to ${role}`);
    }
    return applied.map((migration) => migration.name);
  } finally {
    await lock.query('select pg_advisory_unlock($1)', [LOCK]);
    await lock.release();
    await source.destroy();
  }
}
