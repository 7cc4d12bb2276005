import 'reflect-metadata';
import { loadConfig, runService } from '@holdfast/platform';
import { z } from 'zod';
import { bootstrap } from './migrations/bootstrap.ts';

/** `node dist/bootstrap.js`: the default workspace, its environment and the first API key. */
await runService(async () => {
  const config = loadConfig(z.object({ DATABASE_URL: z.string().min(1), HOLDFAST_API_KEY: z.string() }), process.env);
  await bootstrap(config.DATABASE_URL, config.HOLDFAST_API_KEY);
});
