import 'reflect-metadata';
import { fileURLToPath } from 'node:url';
import { loadConfig, runService } from '@holdfast/platform';
import { z } from 'zod';
import { runMigrations } from './migrations/run-migrations.ts';

/** `node dist/migrate.js`: the init step before any service boots. */
await runService(async () => {
  const config = loadConfig(
    z.object({
      /** The owner's connection. */
      DATABASE_URL: z.string().min(1),
      SANDBOX_MIGRATIONS_DIR: z.string().default(fileURLToPath(new URL('../../sandbox/migrations', import.meta.url))),
    }),
    process.env,
  );
  const applied = await runMigrations(config.DATABASE_URL, config.SANDBOX_MIGRATIONS_DIR);
  process.stdout.write(applied.length === 0 ? 'the schema is up to date\n' : `applied ${applied.join(', ')}\n`);
});
