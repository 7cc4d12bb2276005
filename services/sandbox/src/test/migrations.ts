import { readdirSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { migrate } from '@holdfast/event-store';
import type pg from 'pg';

const FOLDER = fileURLToPath(new URL('../../migrations', import.meta.url));

/** Makes the tables of the log, and those of sandboxes beside it. */
export async function migrateSandboxes(pool: pg.Pool): Promise<void> {
  await migrate(pool);
  const files = readdirSync(FOLDER).sort((a, b) => a.slice(-17).localeCompare(b.slice(-17)));
  await migrate(
    pool,
    files.map((file) => ({ name: basename(file, '.sql'), sql: readFileSync(join(FOLDER, file), 'utf8') })),
  );
}
