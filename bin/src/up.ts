import { type ChildProcess, execFileSync } from 'node:child_process';
import { existsSync, lstatSync, realpathSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { build } from './build.ts';
import { outsideFolder } from './postgres.ts';
import { RunFolder } from './processes.ts';
import { loadSettings, type Settings } from './settings.ts';
import { down, isReady, readStatus, startSupervisor, untilReady } from './supervised.ts';
import { welcome } from './welcome.ts';

const HELP = `usage: bin/up [--detach] [--status] [--reset [--yes]]
  (no flag)   starts everything and stays; Ctrl-C stops it
  --detach    returns when everything is ready
  --status    says what runs
  --reset     removes all data first (asks; --yes does not)
Stop with bin/down. Settings: .env (see .env.example) or the environment.`;

const say = (line: string): void => console.log(`holdfast: ${line}`);

async function printStatus(settings: Settings): Promise<boolean> {
  const run = new RunFolder(settings.stateDir);
  const status = readStatus(run);
  let all = run.find('supervisor') !== null;
  const names = new Set(['supervisor', ...run.names(), ...Object.keys(status?.health ?? {})]);
  for (const name of names) {
    const found = run.find(name);
    const url = status?.health[name];
    const ready = found !== null && (url === undefined || (await isReady(url)));
    all &&= ready;
    console.log(
      `${name.padEnd(16)} ${found === null ? 'not running' : ready ? `running, pid ${found.pid}` : `not ready, pid ${found.pid}`}`,
    );
  }
  return all;
}

/** bubblewrap is what isolates sandboxes on one machine. */
function ensureBubblewrap(): void {
  try {
    execFileSync('bwrap', ['--version'], { stdio: 'ignore' });
    return;
  } catch {
    // Not there.
  }
  const installers: [string, string[]][] = [
    ['/usr/bin/apt-get', ['install', '-y', '--no-install-recommends', 'bubblewrap']],
    ['/usr/bin/dnf', ['install', '-y', 'bubblewrap']],
    ['/sbin/apk', ['add', 'bubblewrap']],
  ];
  const found = installers.find(([path]) => existsSync(path));
  if (process.platform !== 'linux' || process.getuid?.() !== 0 || found === undefined) {
    say('bubblewrap is missing: chat works, but tools need it. Install the package "bubblewrap" of your distribution.');
    return;
  }
  say('installing bubblewrap');
  try {
    if (found[0].endsWith('apt-get')) execFileSync(found[0], ['update', '-qq'], { stdio: 'ignore' });
    execFileSync(found[0], found[1], { stdio: 'ignore', env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' } });
  } catch {
    say(`bubblewrap could not be installed; run: ${found.flat().join(' ')}`);
  }
}

async function reset(settings: Settings, yes: boolean): Promise<void> {
  if (!yes) {
    const terminal = createInterface({ input: process.stdin, output: process.stdout });
    const answer = await terminal.question(
      `Remove all sessions, agents, keys and files under ${settings.stateDir}? [y/N] `,
    );
    terminal.close();
    if (!/^y(es)?$/i.test(answer.trim())) {
      say('nothing was removed');
      process.exit(1);
    }
  }
  await down(settings);
  if (existsSync(settings.stateDir) && lstatSync(settings.stateDir).isDirectory()) {
    for (const part of ['run', 'log', 'data', 'blobs', 'sandboxes'])
      rmSync(join(realpathSync(settings.stateDir), part), { recursive: true, force: true });
  }
  rmSync(outsideFolder(settings.stateDir), { recursive: true, force: true });
  say('all data was removed');
}

async function up(settings: Settings, detach: boolean): Promise<void> {
  const run = new RunFolder(settings.stateDir);
  const buildId = build(say);
  ensureBubblewrap();
  const running = run.find('supervisor');
  let started: ChildProcess | null = null;
  if (running !== null && running.fingerprint === buildId && readStatus(run)?.failed == null) {
    say(`runs already (supervisor pid ${running.pid})`);
  } else {
    if (running !== null) {
      say('the sources changed: restarting');
      await down(settings);
    }
    started = startSupervisor(run, buildId);
  }
  await untilReady(run, say, started);
  say('ready');
  console.log(await welcome(settings, { key: 'HOLDFAST_API_KEY in .env' }));
  if (detach) return;
  say('Ctrl-C stops everything');
  let leaving = false;
  const leave = (): void => {
    if (leaving) return;
    leaving = true;
    say('stopping');
    void down(settings).then(() => process.exit(0));
  };
  process.on('SIGINT', leave);
  process.on('SIGTERM', leave);
  while (run.find('supervisor') !== null || leaving) await sleep(500);
  throw new Error(`the supervisor ended; see ${run.logFile('supervisor')}`);
}

async function main(): Promise<void> {
  const { values: flags } = parseArgs({
    options: {
      detach: { type: 'boolean', default: false },
      status: { type: 'boolean', default: false },
      reset: { type: 'boolean', default: false },
      yes: { type: 'boolean', default: false },
      down: { type: 'boolean', default: false },
      help: { type: 'boolean', short: 'h', default: false },
    },
  });
  if (flags.help) return console.log(HELP);
  const settings = loadSettings();
  if (flags.status) process.exit((await printStatus(settings)) ? 0 : 1);
  if (flags.down) return say((await down(settings)) === 0 ? 'nothing ran' : 'stopped');
  if (flags.reset) await reset(settings, flags.yes);
  await up(settings, flags.detach);
}

main().catch((error: unknown) => {
  console.error(`holdfast: ${error instanceof Error ? error.message : String(error)}`);
  process.exit(1);
});
