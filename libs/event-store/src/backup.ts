import { createReadStream, createWriteStream } from 'node:fs';
import { createInterface } from 'node:readline';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGunzip, createGzip } from 'node:zlib';
import { AppError } from '@holdfast/contracts';
import pg from 'pg';
import { z } from 'zod';
import { rebaseLog } from './maintenance.ts';
import { MIGRATIONS_TABLE } from './migrate.ts';

const FORMAT = 'holdfast-backup-1';
const PAGE_ROWS = 2_000;
const headerLine = z.object({ format: z.literal(FORMAT), migrations: z.array(z.string()) });
const rowsLine = z.object({ table: z.string(), rows: z.array(z.record(z.string(), z.unknown())) });

/** Tables of the schema, parents before the children that reference them. */
async function tablesInOrder(client: pg.ClientBase): Promise<string[]> {
  const { rows: tables } = await client.query<{ name: string }>(
    `select relname as name from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r' and relname <> $1 order by 1`,
    [MIGRATIONS_TABLE],
  );
  const { rows: edges } = await client.query<{ child: string; parent: string }>(
    `select conrelid::regclass::text as child, confrelid::regclass::text as parent from pg_constraint where contype = 'f' and conrelid <> confrelid`,
  );
  const ordered: string[] = [];
  const visit = (name: string): void => {
    if (ordered.includes(name)) return;
    for (const edge of edges) if (edge.child === name) visit(edge.parent);
    ordered.push(name);
  };
  for (const { name } of tables) visit(name);
  return ordered;
}

/** The columns of a table that hold values of their own; Postgres computes the others. */
async function storedColumns(client: pg.ClientBase, table: string): Promise<string> {
  const { rows } = await client.query<{ name: string }>(
    `select attname as name from pg_attribute
     where attrelid = $1::regclass and attnum > 0 and not attisdropped and attgenerated = '' order by attnum`,
    [pg.escapeIdentifier(table)],
  );
  return rows.map(({ name }) => pg.escapeIdentifier(name)).join(', ');
}

/** Lets every column that counts by itself go on above the greatest number that is stored. */
async function countOn(client: pg.ClientBase): Promise<void> {
  const { rows } = await client.query<{ table: string; column: string }>(
    `select attrelid::regclass::text as table, attname as column from pg_attribute join pg_class c on c.oid = attrelid
     where relnamespace = 'public'::regnamespace and relkind = 'r' and attidentity <> ''`,
  );
  for (const { table, column } of rows) {
    await client.query(
      `select setval(pg_get_serial_sequence($1, $2), coalesce(max(${pg.escapeIdentifier(column)}), 0) + 1, false) from ${table}`,
      [table, column],
    );
  }
}

async function appliedMigrations(client: pg.ClientBase): Promise<string[]> {
  const { rows } = await client.query<{ name: string }>(`select name from ${MIGRATIONS_TABLE} order by name`);
  return rows.map((row) => row.name);
}

/**
 * Writes one consistent picture of the whole database to a file (gzip, JSON lines), over a connection alone, while
 * services run. Blobs are files of their own and are copied with ordinary tools. Returns rows per table.
 */
export async function backup(connectionString: string, file: string): Promise<Record<string, number>> {
  const client = new pg.Client({ connectionString, application_name: 'holdfast-backup' });
  await client.connect();
  const counts: Record<string, number> = {};
  try {
    await client.query('begin isolation level repeatable read read only');
    const lines = async function* (): AsyncGenerator<string> {
      yield `${JSON.stringify({ format: FORMAT, migrations: await appliedMigrations(client) })}\n`;
      for (const table of await tablesInOrder(client)) {
        counts[table] = 0;
        const name = pg.escapeIdentifier(table);
        await client.query(`declare page no scroll cursor for select row_to_json(t) as row from ${name} t`);
        for (;;) {
          const { rows } = await client.query<{ row: Record<string, unknown> }>(`fetch ${PAGE_ROWS} from page`);
          if (rows.length === 0) break;
          counts[table] += rows.length;
          yield `${JSON.stringify({ table, rows: rows.map(({ row }) => row) })}\n`;
        }
        await client.query('close page');
      }
    };
    await pipeline(
      Readable.from(lines()),
      createGzip({ level: 6 }),
      createWriteStream(file, { mode: 0o600, flush: true }),
    );
    await client.query('commit');
    return counts;
  } finally {
    await client.end();
  }
}

/**
 * Loads a backup into a migrated, empty database, in one transaction, and rebases it (L5).
 *
 * @throws AppError `backup.not-empty`, `backup.schema` (the migrations differ), `backup.format`.
 */
export async function restore(connectionString: string, file: string): Promise<Record<string, number>> {
  const pool = new pg.Pool({ connectionString, max: 2, application_name: 'holdfast-restore' });
  try {
    const counts = await load(pool, file);
    await rebaseLog(pool);
    return counts;
  } finally {
    await pool.end();
  }
}

async function load(pool: pg.Pool, file: string): Promise<Record<string, number>> {
  const client = await pool.connect();
  const counts: Record<string, number> = {};
  try {
    const tables = await tablesInOrder(client);
    const { rows } = await client.query<{ events: boolean }>('select exists (select 1 from events) as events');
    if (rows[0]?.events === true)
      throw new AppError('rejected', 'backup.not-empty', 'The database holds events; restore into an empty one.');
    await client.query('begin');
    // Bootstrapped rows would collide with the backup's own.
    await client.query(`truncate ${tables.map((table) => pg.escapeIdentifier(table)).join(', ')}`);
    let header: z.infer<typeof headerLine> | undefined;
    const input = createReadStream(file).pipe(createGunzip());
    for await (const line of createInterface({ input, crlfDelay: Number.POSITIVE_INFINITY })) {
      const parsed: unknown = JSON.parse(line);
      if (header === undefined) {
        header = parseLine(headerLine, parsed);
        const here = await appliedMigrations(client);
        if (here.join() !== header.migrations.join()) {
          throw new AppError(
            'rejected',
            'backup.schema',
            'The backup was made with another schema; restore with the version that made it.',
          );
        }
        continue;
      }
      const { table, rows: page } = parseLine(rowsLine, parsed);
      if (!tables.includes(table))
        throw new AppError('invalid', 'backup.format', `The backup names an unknown table: ${table}.`);
      const name = pg.escapeIdentifier(table);
      const columns = await storedColumns(client, table);
      await client.query(
        `insert into ${name} (${columns}) overriding system value select ${columns} from json_populate_recordset(null::${name}, $1::json)`,
        [JSON.stringify(page)],
      );
      counts[table] = (counts[table] ?? 0) + page.length;
    }
    await countOn(client);
    // A lease of the old cluster means nothing here.
    await client.query('update streams set lease_owner = null, lease_expires_at = null where lease_owner is not null');
    await client.query('commit');
    return counts;
  } finally {
    client.release(true);
  }
}

function parseLine<T>(schema: z.ZodType<T>, line: unknown): T {
  const parsed = schema.safeParse(line);
  if (!parsed.success) throw new AppError('invalid', 'backup.format', 'This is no Holdfast backup, or it is damaged.');
  return parsed.data;
}
