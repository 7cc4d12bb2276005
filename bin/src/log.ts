import { build } from './build.ts';
import { maintain } from './maintenance.ts';
import { RunFolder } from './processes.ts';
import { loadSettings } from './settings.ts';
import { down, startSupervisor, untilReady } from './supervised.ts';

/** What must not happen under a running service. */
const OFFLINE = ['restore', 'rebase'];

/** Runs a maintenance command of the log, with servers of its own where the platform does not run. Returns its exit code. */
async function main(args: readonly string[]): Promise<number> {
  const settings = loadSettings();
  const run = new RunFolder(settings.stateDir);
  const say = (line: string): void => console.error(`holdfast: ${line}`);
  const buildId = build(say);
  const command = args[0];
  if (command === undefined || args.includes('--help')) return maintain(settings, args);
  if (run.find('supervisor') !== null) {
    if (!OFFLINE.includes(command)) return maintain(settings, args);
    say(`${command} needs the services stopped; run bin/down first`);
    return 1;
  }
  const supervisor = startSupervisor(run, buildId, true);
  try {
    await untilReady(run, say, supervisor);
    return maintain(settings, args);
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
