import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { roleUrl } from './postgres.ts';
import { namedValues, natsLogin, ROOT, type Settings } from './settings.ts';

/** Runs one maintenance command of the event log against these settings' servers. Returns its exit code. */
export function maintain(settings: Settings, args: readonly string[]): number {
  const { status } = spawnSync(process.execPath, [join(ROOT, 'services/session/dist/maintain.js'), ...args], {
    stdio: 'inherit',
    env: {
      ...process.env,
      DATABASE_URL: roleUrl(settings, 'owner'),
      ...natsLogin(settings, 'session'),
      ...namedValues(settings, /^BLOB_/),
      HOLDFAST_STATE_DIR: settings.stateDir,
    },
  });
  return status ?? 1;
}
