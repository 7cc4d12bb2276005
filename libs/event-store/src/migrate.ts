import type pg from 'pg';
import { logMigrations, type Migration } from './log.migrations.ts';

const MIGRATION_LOCK = 4_711_170_001;

/** Same table and columns as TypeORM's runner is told to use, so that either finds what the other applied. */
export const MIGRATIONS_TABLE = 'migrations_applied';
/**
 * Applies the steps that are not applied yet, in order, one transaction each. Several processes may call it at once: one
 * works, the others wait and find everything done. Returns the names it applied.
 */
export async function migrate(pool: pg.Pool, migrations: readonly Migration[] = logMigrations): Promise<string[]> {
  const client = await pool.connect();
  const applied: string[] = [];
  try {
    await client.query('select pg_advisory_lock($1)', [MIGRATION_LOCK]);
    await client.query(
      `create table if not exists ${MIGRATIONS_TABLE} (id serial primary key, timestamp bigint not null, name varchar not null)`,
    );
    for (const migration of migrations) {
      const { rowCount } = await client.query(`select 1 from ${MIGRATIONS_TABLE} where name = $1`, [migration.name]);
      if (rowCount !== 0) continue;
      await client.query('begin');
      await client.query(migration.sql);
      await client.query(`insert into ${MIGRATIONS_TABLE} (timestamp, name) values ($1, $2)`, [
        migration.name.slice(-13),
        migration.name,
      ]);
      await client.query('commit');
      applied.push(migration.name);
    }
    return applied;
  } finally {
    // Ends the connection, and with it the lock and any transaction that failed.
    client.release(true);
  }
}
