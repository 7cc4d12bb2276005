import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { build } from './build.ts';
import { roleUrl } from './postgres.ts';
import { RunFolder } from './processes.ts';
import { loadSettings, natsLogin, ROOT } from './settings.ts';
import { down, startSupervisor, untilReady } from './supervised.ts';

const MAINTENANCE = join(ROOT, 'services/session/dist/maintain.js');
/** What must not happen under a running service. */
const OFFLINE = ['restore', 'rebase'];

/** Runs a maintenance command of the log, with servers of its own where the platform does not run. Returns its exit code. */
async function main(args: readonly string[]): Promise<number> {
  const settings = loadSettings();
  const run = new RunFolder(settings.stateDir);
  const say = (line: string): void => console.error(`holdfast: ${line}`);
  const buildId = build(say);
  const maintain = (): number =>
    spawnSync(process.execPath, [MAINTENANCE, ...args], {
      stdio: 'inherit',
      env: {
        ...process.env,
        DATABASE_URL: roleUrl(settings, 'owner'),
        ...natsLogin(settings, 'session'),
        BLOB_DIR: settings.values.BLOB_DIR ?? '',
        HOLDFAST_STATE_DIR: settings.stateDir,
      },
    }).status ?? 1;
  const command = args[0];
  if (command === undefined || args.includes('--help')) return maintain();
  if (run.find('supervisor') !== null) {
    if (!OFFLINE.includes(command)) return maintain();
    say(`${command} needs the services stopped; run bin/down first`);
    return 1;
  }
  startSupervisor(run, buildId, true);
  try {
    await untilReady(run, say);
    return maintain();
  } finally {
    await down(settings);
  }
}

main(process.argv.slice(2)).then(
  (code) => process.exit(code),
  (error: unknown) => {
    console.error(`holdfast: ${error instanceof Error ? error.message : String(error)}`);
    process.exit(1);
  },
);
